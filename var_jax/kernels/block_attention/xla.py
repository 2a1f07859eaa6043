"""Block attention from plain XLA operations, for CPU and as the portable choice on GPU."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from var_jax.context import KeySegment, dense_mask
from var_jax.kernels.block_attention import reference

#: Segments shorter than this are computed together, under a mask.
MIN_ROWS = 128
#: Rows of the grid of a level with a neighbourhood that are computed together, under a mask. Fewer
#: see fewer keys but read them more often: to gather each query's own would move a key 49 times.
NEAR_ROWS = 8


def row_groups(segments: tuple[KeySegment, ...], min_rows: int = MIN_ROWS):
    """Joins neighbouring short segments, so that a pyramid's many small levels cost one product.

    Returns:
      (segments, lo, hi) of each group: its segments and the keys that any of them sees.
    """
    groups: list[list[KeySegment]] = []
    for segment in segments:
        last = groups[-1] if groups else []
        joins = bool(last) and last[-1].columns == segment.columns
        if segment.columns is not None:
            joins = joins and len(last) < NEAR_ROWS
        else:
            joins = joins and sum(s.rows for s in last) < min_rows and segment.rows < min_rows
        if joins:
            groups[-1].append(segment)
        else:
            groups.append([segment])
    return [(tuple(g), min(s.lo for s in g), max(s.hi for s in g)) for g in groups]


def block_attention(
    q: Float[Array, "B Lq N H"],
    k: Float[Array, "B Lk N H"],
    v: Float[Array, "B Lk N H"],
    segments: tuple[KeySegment, ...],
    *,
    scale: float = 1.0,
    log_scale: Float[Array, " N"] | None = None,
) -> Float[Array, "B Lq N H"]:
    """Attention one level after another, each over a static slice of the keys.

    A level's queries all see the same keys, so that no mask is needed and the empty part of
    the score matrix, 38% of it for VAR at 256 px, is never computed. A level with a neighbourhood
    is cut into bands of a few rows of its grid, each over the rows that it sees.

    Args, Returns: as for var_jax.kernels.block_attention.block_attention.
    """
    if v.dtype not in (jnp.bfloat16, jnp.float16):
        precision = lax.Precision.HIGHEST
    else:
        precision = lax.Precision.DEFAULT
    wide = jnp.promote_types(v.dtype, jnp.float32)
    qs, ks = reference.scaled_operands(q, k, scale, log_scale)
    # [B, N, L, H], once: each product would rearrange its own slices otherwise.
    qs, ks, v = (x.swapaxes(1, 2) for x in (qs.astype(q.dtype), ks.astype(k.dtype), v))
    outputs = []
    start = 0
    for group, lo, hi in row_groups(segments):
        rows = sum(s.rows for s in group)
        logits = jnp.einsum(
            "bnqh,bnkh->bnqk",
            qs[:, :, start : start + rows],
            ks[:, :, lo:hi],
            precision=precision,
            preferred_element_type=wide,
        )
        if not all(s.sees_all(lo, hi) for s in group):
            logits = jnp.where(dense_mask(group, hi)[:, lo:], logits, -jnp.inf)
        weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
        outputs.append(
            jnp.einsum(
                "bnqk,bnkh->bnqh",
                weights,
                v[:, :, lo:hi],
                precision=precision,
                preferred_element_type=wide,
            ).astype(v.dtype)
        )
        start += rows
    return jnp.concatenate(outputs, axis=2).swapaxes(1, 2)
