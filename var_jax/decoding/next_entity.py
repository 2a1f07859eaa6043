"""Generation entity after entity, each from noise, by a transformer that is the denoiser.

xAR, arXiv 2502.20388, and ACDiT, arXiv 2412.07720: what has been drawn is read once, and its keys
and values are kept; all steps of the next entity look at them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from var_jax.codecs.base import Codec
from var_jax.decoding import base
from var_jax.decoding.guidance import Guidance, LinearGuidance, is_guided, weights_of
from var_jax.decoding.twins import of_pairs, pairs
from var_jax.heads.ode import FlowSampling, noise_of_steps, solve
from var_jax.network import Network


@dataclasses.dataclass(frozen=True)
class NextEntity:
    """Draws the entities of a `Denoiser`, which are the levels of guidance and sampling here: with
    `LinearGuidance` the first entity is not guided and the last one by cfg.

    Attributes:
      guidance: weight of each entity.
      sampling: how an entity is integrated; with annealing, later ones take fewer steps (DiSA).
    """

    guidance: Guidance = LinearGuidance(1.7)
    sampling: Any = FlowSampling(40, 1.0, solver="euler_maruyama")

    def __call__(
        self,
        network: Network,
        params: Any,
        codec: Codec,
        codec_params: Any,
        given: Any,
        keys: jax.Array,
        *,
        own_params: Any = None,
        decode: Callable[[jax.Array], jax.Array] | None = None,
        keep_partial: bool = False,
    ) -> base.Generated:
        """See `Decoder`.

        Raises:
          ValueError: the transformer is no `Denoiser`.
        """
        denoiser, model = network.denoiser, (network, params)
        weights = weights_of(self.guidance, denoiser.entities)
        paired = is_guided(weights)
        asked = base.start(network, given, keys, paired).given
        cache, drawn = denoiser.new_cache(), []
        for k, size in enumerate(denoiser.entities.sizes):
            if paired and not is_guided(weights[k:]):
                asked, cache, paired = *_asked_alone(asked, cache), False
            if k:
                _, cache = _pass(model, drawn[-1], None, k - 1, asked, cache, paired)
            entity = _Entity(model, k, asked, cache, paired)
            t = weights[k]
            mix = (1 + t, -t) if is_guided([t]) else (1.0,)
            entity_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, k)
            shape = (size, *codec.target.shape)
            drawn.append(
                solve(
                    entity,
                    self.start_noise(entity_keys, shape, k),
                    (None,) * len(mix),
                    mix,
                    self.sampling.at(k, denoiser.entities),
                    self.step_noise(entity_keys, shape, k),
                )
            )
        targets = jnp.concatenate(drawn, 1)[:, np.argsort(denoiser.order)]
        variables = {"params": codec_params}
        features = codec.apply(variables, targets, method="features_by_level")
        return base.Generated(targets, features[-1], tuple(features) if keep_partial else ())

    def start_noise(
        self, keys: jax.Array, shape: tuple[int, ...], level: int
    ) -> Float[jax.Array, "B n c"]:
        """What an entity begins with, by the keys [B] of each example's entity."""
        return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)

    def step_noise(
        self, keys: jax.Array, shape: tuple[int, ...], level: int
    ) -> Callable[[jax.Array], Float[jax.Array, "B n c"]]:
        """What a stochastic step adds, see `noise_of_steps`."""
        return noise_of_steps(keys, shape)


@dataclasses.dataclass(frozen=True, eq=False)
class _Entity:
    """The velocity of one entity, for `solve`.

    Attributes:
      model: network and parameters.
      level: which entity.
      asked, paired: see `State`.
      cache: of the entities before.
    """

    model: tuple[Network, Any]
    level: int
    asked: Any
    cache: Any
    paired: bool

    def __call__(
        self, x: jax.Array, time: jax.Array, conditions: tuple[None, ...], weights: tuple[Any, ...]
    ) -> jax.Array:
        """The velocity that the weights of as many conditions mix."""
        network, params = self.model
        asked, cache, guided = self.asked, self.cache, len(conditions) > 1
        if self.paired and not guided:
            asked, cache = _asked_alone(asked, cache)
        hidden, _ = _pass(self.model, x, time, self.level, asked, cache, guided)
        both = (of_pairs(hidden, 0), of_pairs(hidden, 1)) if guided else (hidden,)
        return network.sample(params, both, weights, None, None)[0]


def _pass(
    model: tuple[Network, Any],
    x: jax.Array,
    time: jax.typing.ArrayLike | None,
    level: int,
    asked: Any,
    cache: Any,
    paired: bool,
) -> tuple[jax.Array, Any]:
    """Reads an entity at a time, or as it was drawn; see `Denoiser`."""
    network, params = model
    x = pairs(x, x) if paired else x
    times = None if time is None else jnp.full((len(x), 1), time, jnp.float32)
    levels = range(level, level + 1)
    return network.denoised(params, x, asked, times=times, levels=levels, cache=cache)


def _asked_alone(asked: Any, cache: Any) -> tuple[Any, Any]:
    """Without the unconditional twins."""
    return (
        jax.tree.map(lambda x: of_pairs(x, 0), asked),
        jax.tree.map(lambda x: of_pairs(x, 0, axis=1), cache),
    )
