"""Block attention written out with a dense mask: the specification of every implementation."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Float32, Int

from var_jax.context import KeySegment, dense_mask

#: Largest logit scale of L2-normalised attention, as in the official model.
MAX_SCALE = 100.0
#: Smallest norm divided by, as in torch.nn.functional.normalize.
MIN_NORM = 1e-12


def head_scales(log_scale: Float[Array, " N"]) -> Float32[Array, " N"]:
    """f32 [N]: exp(min(log_scale, ln 100))."""
    return jnp.exp(jnp.minimum(log_scale.astype(jnp.float32), math.log(MAX_SCALE)))


def normalize(x: Float[Array, "*shape H"]) -> Float[Array, "*shape H"]:
    """x / max(L2 norm, 1e-12) over the last axis, in float32 or wider."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    square = jnp.sum(x * x, -1, keepdims=True)
    return x * lax.rsqrt(jnp.maximum(square, MIN_NORM**2))


def scaled_operands(
    q: Float[Array, "B Lq N H"],
    k: Float[Array, "B Lk N H"],
    scale: float,
    log_scale: Float[Array, " N"] | None,
) -> tuple[Float[Array, "B Lq N H"], Float[Array, "B Lk N H"]]:
    """q and k such that the logits are q . k, still in float32 or wider.

    Args: as for `block_attention`.
    """
    wide = jnp.promote_types(q.dtype, jnp.float32)
    if log_scale is None:
        return q.astype(wide) * scale, k.astype(wide)
    return normalize(q) * head_scales(log_scale)[:, None].astype(wide), normalize(k)


def block_attention(
    q: Float[Array, "B Lq N H"],
    k: Float[Array, "B Lk N H"],
    v: Float[Array, "B Lk N H"],
    segments: tuple[KeySegment, ...],
    *,
    scale: float = 1.0,
    log_scale: Float[Array, " N"] | None = None,
) -> Float[Array, "B Lq N H"]:
    """Attention with the whole [B, N, Lq, Lk] score matrix in float32 (float64 if q is).

    Args, Returns: as for var_jax.kernels.block_attention.block_attention.
    """
    qs, ks = scaled_operands(q, k, scale, log_scale)
    exact = lax.Precision.HIGHEST
    logits = jnp.einsum("bqnh,bknh->bnqk", qs, ks, precision=exact)
    logits = jnp.where(dense_mask(segments, k.shape[1]), logits, -jnp.inf)
    weights = jax.nn.softmax(logits, axis=-1)
    out = jnp.einsum("bnqk,bknh->bqnh", weights, v.astype(weights.dtype), precision=exact)
    return out.astype(v.dtype)


def with_cached(
    k: Float[Array, "B n N H"],
    v: Float[Array, "B n N H"],
    cached: Sequence[tuple[Float[Array, "blocks B _ D"], Float[Array, "blocks B _ D"]]],
    block: Int[Array, ""],
) -> tuple[Float[Array, "B keys N H"], Float[Array, "B keys N H"]]:
    """A copy of one block's keys and values of cached levels, and behind them those of this one."""
    split = lambda x: x[block].reshape(*x.shape[1:3], *k.shape[2:])  # noqa: E731
    parts = [*(map(split, pair) for pair in cached), (k, v)]
    keys, values = (jnp.concatenate(x, axis=1) for x in zip(*parts, strict=True))
    return keys, values
