"""Block attention on TPU with the whole row of queries, keys and values in VMEM.

One program computes one example and one group of heads that fills the 128 lanes, e.g. two
heads of width 64, straight from arrays [B, L, N * H]: no head-major copy is made. Because the
key intervals are static, the tiles of the score matrix that are empty are never emitted.

Scores are kept transposed, [keys, queries]: the softmax then reduces over sublanes, its
statistics are lane vectors, both backward products with the scores need no transpose, and a
slice of keys costs a multiple of 16 instead of 128. Heads are separated by zeroing the lanes
of the others, which costs nothing on a matrix unit that is 128 deep anyway.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from var_jax.kernels.block_attention import tiling
from var_jax.kernels.block_attention.layout import LN_2, LOG2_E, MASKED, Layout, cost, pipeline


def mask_scores(
    scores: Float[Array, "keys rows"], tile: tiling.RowTile
) -> Float[Array, "keys rows"]:
    """[hi - lo, rows] -> the same with MASKED where a query does not see a key.

    Only the keys outside of [full_lo, full_hi) are looked at.
    """
    row = tile.start + lax.broadcasted_iota(jnp.int32, (1, scores.shape[1]), 1)
    lo = jnp.full(row.shape, tile.segments[-1][2], jnp.int32)
    hi = jnp.full(row.shape, tile.segments[-1][3], jnp.int32)
    for _, end, seg_lo, seg_hi in reversed(tile.segments[:-1]):
        lo = jnp.where(row < end, seg_lo, lo)
        hi = jnp.where(row < end, seg_hi, hi)
    parts = []
    for a, b, whole in (
        (tile.lo, tile.full_lo, False),
        (tile.full_lo, tile.full_hi, True),
        (tile.full_hi, tile.hi, False),
    ):
        if a == b:
            continue
        part = scores[a - tile.lo : b - tile.lo]
        if not whole:
            key = a + lax.broadcasted_iota(jnp.int32, part.shape, 0)
            part = jnp.where((key >= lo) & (key < hi), part, MASKED)
        parts.append(part)
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, 0)


def for_each_tile(tiles: Sequence[tiling.RowTile], body: Callable) -> None:
    """Calls body(list of (tile, index, start)): once for the unrolled tiles between two loops,
    and once a loop, with a traced index and start."""
    unrolled: list = []
    for tile in tiles:
        if tile.count == 1:
            unrolled.append((tile, tile.index, tile.start))
            continue
        if unrolled:
            body(unrolled)
            unrolled = []

        @pl.loop(0, tile.count)
        def _(i, tile=tile):
            start = pl.multiple_of(tile.start + i * tile.rows, tiling.KEY_ALIGN)
            body([(tile, tile.index + i, start)])

    if unrolled:
        body(unrolled)


def _forward_kernel(
    scale_ref, q_ref, k_ref, v_ref, o_ref, lse_ref, kn_ref, vt_ref, *, layout, tiles
):
    f32 = jnp.float32
    scale = layout.scale_row(scale_ref) * LOG2_E
    k = layout.real_lanes(k_ref[...]).astype(f32)
    if layout.normalize:
        k = k * layout.inverse_norms(k)
    kn_ref[...] = k.astype(layout.dtype)
    vt_ref[...] = v_ref[...].T

    def body(batch):
        items = [(*entry, h) for entry in batch for h in range(layout.heads)]
        queries: dict[int, jax.Array] = {}
        outputs: list[jax.Array] = []

        def scores(i, _):
            tile, _, start, h = items[i]
            if h == 0:
                q = layout.real_lanes(q_ref[pl.ds(start, tile.rows), :]).astype(f32)
                if layout.normalize:
                    q = q * layout.inverse_norms(q)
                queries[i] = q * scale
            q = layout.lanes_of(h, queries[i - h]).astype(layout.dtype)
            return layout.dot(kn_ref[tile.lo : tile.hi, :], q, (1, 1))

        def softmax(i, s):
            tile, index, _, h = items[i]
            s = mask_scores(s, tile)
            top = jnp.max(s, 0, keepdims=True)
            p = jnp.exp2(s - top)
            total = jnp.sum(p, 0, keepdims=True)
            lse_ref[index, h : h + 1, : tile.rows] = top + jnp.log2(total)
            return p.astype(layout.dtype), 1.0 / total

        def output(i, value):
            tile, _, start, h = items[i]
            p, inverse = value
            mine = slice(h * layout.head_dim, (h + 1) * layout.head_dim)
            outputs.append(layout.dot(vt_ref[mine, tile.lo : tile.hi], p, (1, 0)) * inverse)
            if h == layout.heads - 1:
                o = jnp.concatenate(outputs, 0).T.astype(o_ref.dtype)
                o_ref[pl.ds(start, tile.rows), :] = o
                outputs.clear()

        pipeline(len(items), (scores, softmax, output))

    for_each_tile(tiles, body)


def _backward_kernel(
    scale_ref, q_ref, k_ref, v_ref, o_ref, do_ref, lse_ref,
    dq_ref, dk_ref, dv_ref, dscale_ref, kn_ref, kt_ref, dk_acc, dv_acc, *, layout, tiles,
):  # fmt: skip
    f32 = jnp.float32
    scale = layout.scale_row(scale_ref)
    k = layout.real_lanes(k_ref[...]).astype(f32)
    if layout.normalize:
        k = k * layout.inverse_norms(k)
    kn_ref[...] = k.astype(layout.dtype)
    kt_ref[...] = k.T.astype(layout.dtype)
    dk_acc[...] = jnp.zeros_like(dk_acc)
    dv_acc[...] = jnp.zeros_like(dv_acc)
    dscale_ref[...] = jnp.zeros_like(dscale_ref)

    def body(batch):
        items = [(*entry, h) for entry in batch for h in range(layout.heads)]
        rows: dict[int, tuple] = {}
        gradients: list[jax.Array] = []

        def products(i, _):
            tile, _, start, h = items[i]
            here = pl.ds(start, tile.rows)
            if h == 0:
                q = layout.real_lanes(q_ref[here, :]).astype(f32)
                inverse = layout.inverse_norms(q) if layout.normalize else None
                q = q * inverse if layout.normalize else q
                do = layout.real_lanes(do_ref[here, :])
                rows[i] = (
                    q,
                    inverse,
                    do,
                    do.astype(f32) * layout.real_lanes(o_ref[here, :]).astype(f32),
                )
            q, _, do, do_o = rows[i - h]
            q = layout.lanes_of(h, q * (scale * LOG2_E)).astype(layout.dtype)
            do = layout.lanes_of(h, do)
            delta = layout.row_sums(h, do_o)
            keys = slice(tile.lo, tile.hi)
            s = layout.dot(kn_ref[keys, :], q, (1, 1))
            dp = layout.dot(layout.real_lanes(v_ref[keys, :]), do, (1, 1))
            return s, dp, delta, q, do

        def score_gradients(i, value):
            tile, index, _, h = items[i]
            s, dp, delta, q, do = value
            p = jnp.exp2(mask_scores(s, tile) - lse_ref[index, h : h + 1, : tile.rows])
            ds = p * (dp - delta)
            return p.astype(layout.dtype), ds.astype(layout.dtype), q, do

        def accumulate(i, value):
            tile, _, start, h = items[i]
            p, ds, q, do = value
            keys = slice(tile.lo, tile.hi)
            dv_acc[keys, :] += layout.dot(p, do, (1, 0))
            dk_acc[keys, :] += layout.dot(ds, q, (1, 0))
            mine = slice(h * layout.head_dim, (h + 1) * layout.head_dim)
            gradients.append(layout.dot(kt_ref[mine, keys], ds, (1, 0)))
            if h == layout.heads - 1:
                dq = jnp.concatenate(gradients, 0).T
                gradients.clear()
                q, inverse, _, _ = rows[i - h]
                if layout.normalize:
                    along = q * dq
                    dscale_ref[...] += jnp.sum(along, 0, keepdims=True)
                    dq = (dq - q * layout.head_sums(along)) * inverse
                dq_ref[pl.ds(start, tile.rows), :] = (dq * scale).astype(dq_ref.dtype)

        pipeline(len(items), (products, score_gradients, accumulate))

    for_each_tile(tiles, body)
    dk = dk_acc[...] * LN_2
    if layout.normalize:
        k = layout.real_lanes(k_ref[...]).astype(f32)
        inverse = layout.inverse_norms(k)
        k = k * inverse
        dk = (dk - k * layout.head_sums(k * layout.real_lanes(dk))) * inverse
    dk_ref[...] = dk.astype(dk_ref.dtype)
    dv_ref[...] = dv_acc[...].astype(dv_ref.dtype)


def _specs(layout: Layout, num_queries: int, num_keys: int, tiles, max_rows: int):
    """Block specs of (scale, q-like, k-like, lse), and the shape of lse without the batch."""
    at = lambda b, n: (b, 0, n)  # noqa: E731
    lse = (tiling.num_tiles(tiles), layout.heads, max_rows)
    return (
        pl.BlockSpec(memory_space=pltpu.SMEM),
        pl.BlockSpec((None, num_queries, layout.width), at),
        pl.BlockSpec((None, num_keys, layout.width), at),
        pl.BlockSpec((None, None, *lse), lambda b, n: (b, n, 0, 0, 0)),
        lse,
    )


def forward(q, k, v, scales, tiles, layout: Layout, max_rows: int, params, interpret=False):
    """Attention output and statistics.

    Args:
      q: [B, Lq, N * H].
      k, v: [B, Lk, N * H].
      scales: f32 [layout.groups * layout.heads], the logit scale of each head.
      tiles: of the queries.
      layout: of the heads.
      max_rows: of a tile.
      params: pltpu.CompilerParams.
      interpret: False, or how to interpret the kernel on another backend.

    Returns:
      (o [B, Lq, N * H] in v's dtype,
       base-2 log-sum-exp f32 [B, groups, tiles, heads, max_rows], for `backward` only)
    """
    batch, num_queries, _ = q.shape
    num_keys = k.shape[1]
    smem, rows, keys, lse, lse_shape = _specs(layout, num_queries, num_keys, tiles, max_rows)
    return pl.pallas_call(
        functools.partial(_forward_kernel, layout=layout, tiles=tiles),
        grid=(batch, layout.groups),
        in_specs=[smem, rows, keys, keys],
        out_specs=[rows, lse],
        out_shape=[
            jax.ShapeDtypeStruct(q.shape, v.dtype),
            jax.ShapeDtypeStruct((batch, layout.groups, *lse_shape), jnp.float32),
        ],
        scratch_shapes=[
            pltpu.VMEM((num_keys, layout.width), layout.dtype),
            pltpu.VMEM((layout.width, num_keys), layout.dtype),
        ],
        compiler_params=params,
        cost_estimate=cost(layout, batch, tiling.num_scores(tiles), 2, q, k, v, q),
        interpret=interpret,
        name="block_attention_forward",
    )(scales, q, k, v)


def backward(q, k, v, scales, o, lse, do, tiles, layout: Layout, max_rows, params, interpret=False):
    """Gradients of `forward` with respect to q, k, v and scales, in one kernel.

    Args: as for `forward`; o and lse are its results, do is the gradient of o.

    Returns:
      (dq, dk, dv, dscale f32 [B, groups, 1, heads * H]), the last one to be summed over the
      batch and over each head's lanes, and zero unless layout.normalize.
    """
    batch, num_queries, _ = q.shape
    num_keys = k.shape[1]
    smem, rows, keys, lse_spec, _ = _specs(layout, num_queries, num_keys, tiles, max_rows)
    return pl.pallas_call(
        functools.partial(_backward_kernel, layout=layout, tiles=tiles),
        grid=(batch, layout.groups),
        in_specs=[smem, rows, keys, keys, rows, rows, lse_spec],
        out_specs=[
            rows,
            keys,
            keys,
            pl.BlockSpec((None, None, 1, layout.width), lambda b, n: (b, n, 0, 0)),
        ],
        out_shape=[
            jax.ShapeDtypeStruct(q.shape, q.dtype),
            jax.ShapeDtypeStruct(k.shape, k.dtype),
            jax.ShapeDtypeStruct(v.shape, v.dtype),
            jax.ShapeDtypeStruct((batch, layout.groups, 1, layout.width), jnp.float32),
        ],
        scratch_shapes=[
            pltpu.VMEM((num_keys, layout.width), layout.dtype),
            pltpu.VMEM((layout.width, num_keys), layout.dtype),
            pltpu.VMEM((num_keys, layout.width), jnp.float32),
            pltpu.VMEM((num_keys, layout.width), jnp.float32),
        ],
        compiler_params=params,
        cost_estimate=cost(layout, batch, tiling.num_scores(tiles), 5, *(q, k, v, o) * 2),
        interpret=interpret,
        name="block_attention_backward",
    )(scales, q, k, v, o, do, lse)
