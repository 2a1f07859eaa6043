"""Examples beside their unconditional twins: a cut batch axis keeps both on one device."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Float


def pairs(first: jax.Array, second: jax.Array) -> jax.Array:
    """[B, ...] twice -> [2 B, ...]: first 0, second 0, first 1, second 1, ..."""
    return jnp.stack([first, second], axis=1).reshape(-1, *first.shape[1:])


def of_pairs(x: jax.Array, which: int, axis: int = 0) -> jax.Array:
    """One of each pair that `pairs` made."""
    both = x.reshape(*x.shape[:axis], x.shape[axis] // 2, 2, *x.shape[axis + 1 :])
    return jax.lax.index_in_dim(both, which, axis + 1, keepdims=False)


def mixed_pairs(
    weight: float | jax.Array, count: int, run: int, x: Float[jax.Array, "B n C"]
) -> Float[jax.Array, "B n C"]:
    """Behind the first `count` runs, both of each pair as (1 + t) cond - t uncond."""
    if run >= count:
        return x
    mix = (1 + weight) * of_pairs(x, 0) - weight * of_pairs(x, 1)
    return pairs(mix, mix).astype(x.dtype)
