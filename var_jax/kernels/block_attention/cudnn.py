"""Block attention on NVIDIA GPUs: cuDNN's fused attention, a call for each group of levels."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from var_jax.context import KeySegment, dense_mask
from var_jax.kernels.block_attention import reference, xla

#: Segments shorter than this are computed together, under a mask.
MIN_ROWS = 256


def block_attention(
    q: Float[Array, "B Lq N H"],
    k: Float[Array, "B Lk N H"],
    v: Float[Array, "B Lk N H"],
    segments: tuple[KeySegment, ...],
    *,
    scale: float = 1.0,
    log_scale: Float[Array, " N"] | None = None,
    min_rows: int = MIN_ROWS,
) -> Float[Array, "B Lq N H"]:
    """A large level needs no mask over its slice of the keys; the small ones share a call.

    Args, Returns: as for var_jax.kernels.block_attention.block_attention.
      min_rows: segments shorter than this are computed together, under a mask.

    Raises:
      TypeError: q, k and v are not all bfloat16 or all float16.
    """
    if not q.dtype == k.dtype == v.dtype or q.dtype not in (jnp.bfloat16, jnp.float16):
        raise TypeError(
            "implementation 'cudnn' takes q, k and v all in bfloat16 or all in float16, got "
            f"{q.dtype}, {k.dtype} and {v.dtype}; use 'xla' for other dtypes."
        )
    # Any scale is folded into q in float32: once for all levels.
    qs, ks = reference.scaled_operands(q, k, scale, log_scale)
    qs, ks = qs.astype(q.dtype), ks.astype(k.dtype)
    outputs = []
    start = 0
    for group, lo, hi in xla.row_groups(segments, min_rows):
        rows = sum(s.rows for s in group)
        args = (
            _even_slice(qs, start, start + rows),
            _even_slice(ks, lo, hi),
            _even_slice(v, lo, hi),
        )
        out = jax.nn.dot_product_attention(
            *args, scale=1.0, implementation="cudnn", **_visible(group, lo, hi, q.shape[0])
        )
        outputs.append(out[:, :rows])
        start += rows
    return outputs[0] if len(outputs) == 1 else jnp.concatenate(outputs, axis=1)


def _even_slice(x: jax.Array, start: int, stop: int) -> jax.Array:
    """x[:, start:stop], longer by the row behind it, or by zeros, if that is odd.

    JAX differentiates cuDNN's attention for even lengths only.
    """
    stop += (stop - start) % 2
    if stop > x.shape[1]:
        x = jnp.pad(x, ((0, 0), (0, 1), (0, 0), (0, 0)))
    return lax.slice_in_dim(x, start, stop, axis=1)


def _visible(group: tuple[KeySegment, ...], lo: int, hi: int, batch: int) -> dict[str, Any]:
    """Arguments that say which keys of the even slice [lo, hi) the queries of a group see."""
    odd = (hi - lo) % 2
    if all(s.sees_all(lo, hi) for s in group):
        return {"key_value_seq_lengths": jnp.full(batch, hi - lo, jnp.int32)} if odd else {}
    mask = dense_mask(group, hi + odd)[:, lo:]
    # What the row behind the group's gives is dropped; it must see something, or it is NaN.
    mask = np.concatenate([mask, mask[-1:]] if len(mask) % 2 else [mask])
    return {"mask": jnp.asarray(mask[None, None])}
