"""Generation: one pass a level, coarse to fine."""

from __future__ import annotations

import dataclasses

import flax
import jax
import jax.numpy as jnp

from var_jax.decoding.guidance import Guidance, LinearGuidance
from var_jax.heads.filters import LevelPolicy
from var_jax.pyramid import ScalePyramid
from var_jax.transformer.var import VAR, StepCache


@dataclasses.dataclass(frozen=True)
class Sampler:
    """Settings of generation. A tuple gives one value a level.

    The defaults are those of the official FID evaluation.

    Attributes:
      guidance: weight of each level.
      top_k, top_p, temperature: see `LevelPolicy`.
      smooth: official `more_smooth`; for looks, not for scores.
    """

    guidance: Guidance = LinearGuidance(1.5)
    top_k: int | tuple[int, ...] = 900
    top_p: float | tuple[float, ...] = 0.96
    temperature: float | tuple[float, ...] = 1.0
    smooth: bool | tuple[bool, ...] = False

    def policy(self, level: int, pyramid: ScalePyramid) -> LevelPolicy:
        """The policy of one level; raises ValueError for a tuple of another length than K."""

        def at(name):
            value = getattr(self, name)
            if not isinstance(value, tuple):
                return value
            if len(value) != pyramid.num_levels:
                raise ValueError(
                    f"{name} has {len(value)} values, but the pyramid has {pyramid.num_levels} "
                    "levels; give one a level or a single value."
                )
            return value[level]

        return LevelPolicy(
            at("top_k"), at("top_p"), at("temperature"), at("smooth"), pyramid.progress(level)
        )


@flax.struct.dataclass
class Generated:
    """What `generate` returns.

    Attributes:
      tokens: int32 [B, L].
      features: float32 [B, h, w, C], to be decoded by the autoencoder.
      partial: the features after each level, K arrays; empty unless asked for.
    """

    tokens: jax.Array
    features: jax.Array
    partial: tuple[jax.Array, ...] = ()


def generate(
    var: VAR,
    head,
    codec,
    params,
    codec_params,
    labels: jax.Array,
    keys: jax.Array,
    sampler: Sampler = Sampler(),
    keep_partial: bool = False,
) -> Generated:
    """Draws one pyramid an example; static shapes, to be compiled as one program.

    Example i depends on its label and its key only, not on the batch it is in.

    Args:
      var, head, codec: modules.
      params: {'transformer': ..., 'head': ...}.
      codec_params: the codec's parameters.
      labels: int32 [B] in 0..num_classes; num_classes is 'no class'.
      keys: one PRNG key an example, [B].
      sampler: settings.
      keep_partial: also return the features after each level.
    """
    pyramid = var.pyramid
    weights = [sampler.guidance.weight(k, pyramid.num_levels) for k in range(pyramid.num_levels)]
    # The unconditional half runs up to the last guided level: later ones do not look at it.
    guided_levels = max((k + 1 for k, t in enumerate(weights) if t != 0), default=0)
    # Each example beside its unconditional twin: a cut batch axis keeps both on one device.
    both = _pairs(labels, jnp.full_like(labels, var.num_classes))

    def step(level, inputs, labels, cache):
        return var.apply(
            {"params": params["transformer"]}, level, inputs, labels, cache, method="step"
        )

    carry, inputs, cache = None, None, StepCache()
    tokens, partial = [], []
    for k in range(pyramid.num_levels):
        guided = k < guided_levels
        if k == guided_levels and k > 0:
            cache = jax.tree.map(lambda x: _pair(x, 0, axis=1), cache)
        if guided and inputs is not None:
            inputs = _pairs(inputs, inputs)
        hidden, cache = step(k, inputs, both if guided else labels, cache)
        level_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, k)
        target, code = head.apply(
            {"params": params["head"]},
            _pair(hidden, 0) if guided else hidden,
            _pair(hidden, 1) if weights[k] != 0 else None,
            weights[k],
            level_keys,
            sampler.policy(k, pyramid),
            method="sample",
        )
        carry, inputs = codec.apply({"params": codec_params}, carry, k, code, method="advance")
        tokens.append(target)
        if keep_partial:
            partial.append(codec.apply({"params": codec_params}, carry, method="finish"))
    features = codec.apply({"params": codec_params}, carry, method="finish")
    return Generated(jnp.concatenate(tokens, axis=1), features, tuple(partial))


def _pairs(first: jax.Array, second: jax.Array) -> jax.Array:
    """[B, ...] twice -> [2 B, ...]: first 0, second 0, first 1, second 1, ..."""
    return jnp.stack([first, second], axis=1).reshape(-1, *first.shape[1:])


def _pair(x: jax.Array, which: int, axis: int = 0) -> jax.Array:
    """One of each pair that `_pairs` made."""
    pairs = x.reshape(*x.shape[:axis], x.shape[axis] // 2, 2, *x.shape[axis + 1 :])
    return jax.lax.index_in_dim(pairs, which, axis + 1, keepdims=False)
