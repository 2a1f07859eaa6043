"""Editing: a picture's tokens stay where a rule keeps them, and the others are drawn.

In- and out-painting keep what lies outside a mask; class-conditional editing asks for another
class; variations and refinement keep the first levels whole. All are one loop, and differ in the
mask, the level that it begins with, and the rule.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import flax
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from var_jax.codecs.base import Codec
from var_jax.decoding import base
from var_jax.decoding.guidance import Guidance, LinearGuidance, is_guided, weights_of
from var_jax.heads.categorical import CategoricalSampling
from var_jax.network import Network
from var_jax.pyramid import ScalePyramid
from var_jax.transformer.cache import CachePolicy


@flax.struct.dataclass
class Source:
    """Pictures, and what is asked of them; examples on axis 0.

    Attributes:
      given: what the results should show, see `Conditioner`.
      features: float32 [B, h, w, C] of the pictures, from the encoder.
      keep: float32 [B, h, w] in [0, 1], the share of each cell's pixels that are to stay.
      shown: what the pictures show, as `given`.
    """

    given: Any
    features: jax.Array
    keep: jax.Array
    shown: Any


@dataclasses.dataclass(frozen=True)
class Step:
    """What a rule sees of one level.

    Attributes:
      source: the pictures.
      level, pyramid: which level.
      encoded: [B, n, ...], the pictures' own targets of the level.
      nearest: weights [B, h, w] -> [B, n, ...], the targets that bring what has been drawn so far
        nearest to the pictures, see `Codec.nearest`.
      surprise: targets [B, n, ...] -> [B, n], their negative log likelihood in nats after what
        has been drawn, under what is asked for.
      shown_surprise: [B, n], that of `encoded` after the pictures' own coarser levels, under what
        they show; None unless the rule compares.
    """

    source: Source
    level: int
    pyramid: ScalePyramid
    encoded: jax.Array
    nearest: Callable[[jax.Array], jax.Array]
    surprise: Callable[[jax.Array], jax.Array]
    shown_surprise: jax.Array | None


class Rule(Protocol):
    """A frozen dataclass that says which tokens are not drawn, and what they are.

    Attributes:
      compares: it reads `Step.shown_surprise`, which takes one more pass.
    """

    compares: bool

    def settle(self, step: Step) -> tuple[jax.Array, Bool[jax.Array, "B n"]]:
        """Targets of a level [B, n, ...], and which tokens take them in place of drawn ones."""

    def finish(
        self,
        drawn: Float[jax.Array, "B h w C"],
        encoded: Float[jax.Array, "B h w C"],
        keep: Float[jax.Array, "B h w"],
    ) -> Float[jax.Array, "B h w C"]:
        """The features to decode, from those drawn and those that the pictures' tokens give."""


@dataclasses.dataclass(frozen=True)
class Editing:
    """Draws what a rule does not keep; what is given is a `Source`.

    Attributes:
      rule: which tokens are kept, and as what.
      level: levels before it are the pictures' own, whole. With the number of levels nothing is
        drawn.
      candidates: so many are drawn for each picture, and of them the one is taken after which the
        kept tokens are the most likely: new parts that do not fit make them unlikely.
      guidance: weight of each level.
      sampling: the head's settings, see `Head`.
      cache_policy: what the cache keeps; None is all that the context sees.
    """

    rule: Rule
    level: int = 0
    candidates: int = 1
    guidance: Guidance = LinearGuidance(1.5)
    sampling: Any = CategoricalSampling()
    cache_policy: CachePolicy | None = None

    def __call__(
        self,
        network: Network,
        params: Any,
        codec: Codec,
        codec_params: Any,
        given: Source,
        keys: jax.Array,
        *,
        own_params: Any = None,
        decode: Callable[[jax.Array], jax.Array] | None = None,
        keep_partial: bool = False,
    ) -> base.Generated:
        """See `Decoder`.

        Raises:
          ValueError: the level or the number of candidates is out of range, or the head has no
            likelihood, or the codec no `nearest`, where one is needed.
        """
        self.check(network)

        def call(method: str, *args: Any) -> Any:
            return codec.apply({"params": codec_params}, *args, method=method)

        pyramid, source = network.transformer.pyramid, given
        encoded = call("encode", source.features)
        if self.candidates > 1:
            rows = jnp.repeat(jnp.arange(len(keys)), self.candidates)
            source, encoded = jax.tree.map(lambda x: x[rows], (source, encoded))
            keys = base.several(keys, self.candidates, pyramid.num_levels)
        levels, shown = pyramid.split(encoded), [None] * pyramid.num_levels
        if self.rule.compares:
            shown = self._shown_surprise(network, params, codec, codec_params, source, encoded)
        paired = is_guided(weights_of(self.guidance, pyramid))
        state = base.start(network, source.given, keys, paired, pyramid)
        misfit, partial = jnp.zeros(len(keys)), []
        for k, own in enumerate(levels):
            if k < self.level:
                state = base.add(codec, codec_params, own, own, state)
            else:
                hiddens, mix, state = base.conditions(
                    network, params, state, self.guidance, self.cache_policy
                )
                settings = self.sampling.at(k, pyramid)
                drawn = base.sample(network, params, hiddens, mix, settings, state)
                step = _step(network, params, codec, call, hiddens[0], state, source, own, shown[k])
                wanted, kept = self.rule.settle(step)
                if self.candidates > 1:
                    misfit += jnp.where(kept, step.surprise(wanted), 0.0).sum(1)
                target, code = (replaced(kept, wanted, x) for x in drawn)
                state = base.add(codec, codec_params, target, code, state)
            if keep_partial:
                partial.append(call("finish", state.carry))
        features = call("finish", state.carry)
        features = self.rule.finish(features, call("decode", encoded), source.keep)
        made = base.Generated(jnp.concatenate(state.targets, axis=1), features, tuple(partial))
        if self.candidates == 1:
            return made
        misfit = misfit.reshape(-1, self.candidates)
        best = misfit.argmin(1) + self.candidates * jnp.arange(len(misfit))
        return jax.tree.map(lambda x: x[best], made)

    def check(self, network: Network) -> None:
        """Raises ValueError for settings that do not suit a model."""
        count = network.transformer.pyramid.num_levels
        if not 0 <= self.level <= count:
            raise ValueError(
                f"level is {self.level}, but the pyramid has {count} levels; give a number from 0, "
                "which draws all of them, to that."
            )
        if self.candidates < 1:
            raise ValueError(f"candidates is {self.candidates}; give 1 or more.")
        if (self.rule.compares or self.candidates > 1) and not network.head.has_likelihood:
            raise ValueError(
                "This model's head draws, but has no likelihood to compare by; take candidates=1 "
                "and a rule that does not compare, such as 'refit'."
            )

    def _shown_surprise(
        self,
        network: Network,
        params: Any,
        codec: Codec,
        codec_params: Any,
        source: Source,
        encoded: jax.Array,
    ) -> list[jax.Array]:
        """The pictures' own tokens' negative log likelihood under what they show, by level."""
        pyramid = network.transformer.pyramid
        state = base.start(network, source.shown, None, False, pyramid)
        for own in pyramid.split(encoded):
            state = base.add(codec, codec_params, own, own, state)
        inputs = state.inputs[1:-1]
        first = jnp.zeros((len(encoded), pyramid.sizes[0], network.transformer.code_dim))
        hidden, _ = network.hidden(params, jnp.concatenate([first, *inputs], 1), source.shown)
        levels = zip(pyramid.split(hidden), pyramid.split(encoded), pyramid.shapes, strict=True)
        return [base.surprise(network, params, h, own, shape) for h, own, shape in levels]


def _step(
    network: Network,
    params: Any,
    codec: Codec,
    call: Callable[..., Any],
    hidden: jax.Array,
    state: base.State,
    source: Source,
    encoded: jax.Array,
    shown_surprise: jax.Array | None,
) -> Step:
    """What a rule sees of the next level; `hidden` is conditional, `call` a method of the codec."""
    level, pyramid, carry = state.level, state.pyramid, state.carry

    def nearest(weights: jax.Array) -> jax.Array:
        if not hasattr(codec, "nearest"):
            raise ValueError(
                f"The codec {type(codec).__name__} cannot encode what is left of a picture (it has "
                "no `nearest`); take the rule 'forced'."
            )
        return call("nearest", source.features, carry, level, weights)

    def surprise(target: jax.Array) -> jax.Array:
        return base.surprise(network, params, hidden, target, pyramid.shapes[level])

    return Step(source, level, pyramid, encoded, nearest, surprise, shown_surprise)


def replaced(kept: Bool[jax.Array, "B n"], wanted: jax.Array, drawn: jax.Array) -> jax.Array:
    """The targets of a level, or what the codec accumulates, with the wanted ones where kept.

    Args:
      kept: which tokens.
      wanted: targets [B, n, ...].
      drawn: of the same shape; or distributions over codes, float [B, n, V].
    """
    if drawn.ndim > wanted.ndim:
        wanted = jax.nn.one_hot(wanted, drawn.shape[-1], dtype=drawn.dtype)
    return jnp.where(kept.reshape(*kept.shape, *[1] * (drawn.ndim - 2)), wanted, drawn)
