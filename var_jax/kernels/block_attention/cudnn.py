"""Block attention on NVIDIA GPUs: cuDNN's fused attention, level by level."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from var_jax.context import KeySegment
from var_jax.kernels.block_attention import reference, xla


def block_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segments: tuple[KeySegment, ...],
    *,
    scale: float = 1.0,
    log_scale: jax.Array | None = None,
) -> jax.Array:
    """Each large level calls cuDNN without a mask over its slice of the keys.

    The levels below 128 tokens share one masked product by XLA: cuDNN would need a bias for
    it and does not take one of odd length; for VAR at 256 px it holds 7% of the scores.

    Args, Returns: as for var_jax.kernels.block_attention.block_attention.

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
    for group, lo, hi in xla.row_groups(segments):
        rows = sum(s.rows for s in group)
        part = (
            lax.slice_in_dim(qs, start, start + rows, axis=1),
            lax.slice_in_dim(ks, lo, hi, axis=1),
            lax.slice_in_dim(v, lo, hi, axis=1),
        )
        if len({(s.lo, s.hi) for s in group}) == 1:
            outputs.append(jax.nn.dot_product_attention(*part, scale=1.0, implementation="cudnn"))
        else:
            local = tuple(KeySegment(s.rows, s.lo - lo, s.hi - lo) for s in group)
            outputs.append(xla.block_attention(*part, local))
        start += rows
    return outputs[0] if len(outputs) == 1 else jnp.concatenate(outputs, axis=1)
