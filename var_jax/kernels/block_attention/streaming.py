"""Block attention on TPU for rows too long for VMEM: tiles of queries and keys stream through.

The grid walks a static list of the (query tile, key tile) pairs in which some query sees some
key, so that empty tiles cost neither a load nor a step. Scores are kept transposed, as in
whole_row.py. q carries the logit scale times log2(e) already; normalisation is the caller's.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Int32

from var_jax.context import KeySegment
from var_jax.kernels.block_attention import tiling
from var_jax.kernels.block_attention.layout import LN_2, MASKED, Layout, cost, pipeline


@dataclasses.dataclass(frozen=True)
class Grid:
    """Tiles of one call.

    Attributes:
      segments: key intervals of the queries.
      num_keys: Lk.
      block_q: queries a tile; a multiple of 128, or Lq rounded up to one.
      block_k: keys a tile; likewise.
      sub_q: queries whose scores are in flight together; divides block_q.
    """

    segments: tuple[KeySegment, ...]
    num_keys: int
    block_q: int
    block_k: int
    sub_q: int

    @property
    def num_queries(self) -> int:
        """Lq."""
        return sum(s.rows for s in self.segments)

    @property
    def tiles_q(self) -> int:
        """Number of query tiles."""
        return -(-self.num_queries // self.block_q)

    @property
    def tiles_k(self) -> int:
        """Number of key tiles."""
        return -(-self.num_keys // self.block_k)

    def bounds(self) -> Int32[np.ndarray, "tiles 2 block"]:
        """int32 [tiles_q, 2, block_q]: (lo, hi) of each query; everything for padding."""
        found = np.zeros((2, self.tiles_q * self.block_q), np.int32)
        found[1] = self.num_keys
        for start, end, lo, hi in tiling.spans(self.segments):
            found[0, start:end], found[1, start:end] = lo, hi
        return found.reshape(2, self.tiles_q, self.block_q).swapaxes(0, 1).copy()

    def pairs(self, keys_outer: bool) -> Int32[np.ndarray, "4 pairs"]:
        """int32 [4, pairs]: query tile, key tile, first and last pair of its outer tile.

        A key tile that no query sees still gets one pair, so that its gradient is written.
        """
        live = np.zeros((self.tiles_q, self.tiles_k), bool)
        for start, end, lo, hi in tiling.spans(self.segments):
            rows = slice(start // self.block_q, -(-end // self.block_q))
            live[rows, lo // self.block_k : -(-hi // self.block_k)] = True
        if keys_outer:
            live[0, ~live.any(0)] = True
            k, q = np.nonzero(live.T)
            outer = k
        else:
            q, k = np.nonzero(live)
            outer = q
        change = outer[1:] != outer[:-1]
        first, last = np.r_[True, change], np.r_[change, True]
        return np.stack([q, k, first, last]).astype(np.int32)

    def num_scores(self, pairs: Int32[np.ndarray, "4 pairs"]) -> int:
        """(query, key) pairs computed for one head."""
        return pairs.shape[1] * self.block_q * self.block_k


def _valid_rows(x: jax.Array, tile: jax.Array, block: int, length: int) -> jax.Array:
    """[block, width] -> the same with zeros in the rows beyond the end of the array."""
    if length % block == 0:
        return x
    left = length - tile * block
    return jnp.where(lax.broadcasted_iota(jnp.int32, x.shape, 0) < left, x, 0)


def _masked_scores(layout: Layout, grid: Grid, k, q, bounds, k_tile):
    """[block_k, rows] base-2 logits, MASKED where a query (lane) does not see a key."""
    s = layout.dot(k, q, (1, 1))
    key = k_tile * grid.block_k + lax.broadcasted_iota(jnp.int32, s.shape, 0)
    seen = key < bounds[1:2]
    if any(segment.lo for segment in grid.segments):
        seen &= key >= bounds[0:1]
    return jnp.where(seen, s, MASKED)


def _items(layout: Layout, grid: Grid) -> list[tuple[slice, int]]:
    """(queries of the tile, head) of each part of one step."""
    starts = range(0, grid.block_q, grid.sub_q)
    return [(slice(a, a + grid.sub_q), h) for a in starts for h in range(layout.heads)]


def _forward_kernel(
    pairs_ref, bounds_ref, q_ref, k_ref, v_ref, o_ref, lse_ref, top_ref, total_ref, acc_ref,
    *, layout, grid,
):  # fmt: skip
    p = pl.program_id(2)
    q_tile, k_tile = pairs_ref[0, p], pairs_ref[1, p]

    @pl.when(pairs_ref[2, p] == 1)
    def _():
        top_ref[...] = jnp.full_like(top_ref, MASKED)
        total_ref[...] = jnp.zeros_like(total_ref)
        acc_ref[...] = jnp.zeros_like(acc_ref)

    real = layout.real_lanes
    q = _valid_rows(real(q_ref[...]), q_tile, grid.block_q, grid.num_queries)
    k = _valid_rows(real(k_ref[...]), k_tile, grid.block_k, grid.num_keys)
    vt = _valid_rows(v_ref[...], k_tile, grid.block_k, grid.num_keys).T
    items = _items(layout, grid)

    def scores(i, _):
        rows, h = items[i]
        here = layout.lanes_of(h, q[rows])
        return _masked_scores(layout, grid, k, here, bounds_ref[:, rows], k_tile)

    def softmax(i, s):
        rows, h = items[i]
        before = top_ref[h : h + 1, rows]
        top = jnp.maximum(before, jnp.max(s, 0, keepdims=True))
        shrink = jnp.exp2(before - top)
        weights = jnp.exp2(s - top)
        top_ref[h : h + 1, rows] = top
        total_ref[h : h + 1, rows] = total_ref[h : h + 1, rows] * shrink + jnp.sum(
            weights, 0, keepdims=True
        )
        return weights.astype(layout.dtype), shrink

    def output(i, value):
        rows, h = items[i]
        weights, shrink = value
        mine = slice(h * layout.head_dim, (h + 1) * layout.head_dim)
        acc_ref[mine, rows] = acc_ref[mine, rows] * shrink + layout.dot(vt[mine], weights, (1, 0))

    pipeline(len(items), (scores, softmax, output))

    @pl.when(pairs_ref[3, p] == 1)
    def _():
        parts = []
        for h in range(layout.heads):
            mine = slice(h * layout.head_dim, (h + 1) * layout.head_dim)
            parts.append(acc_ref[mine, :] / total_ref[h : h + 1, :])
            lse_ref[h : h + 1, :] = top_ref[h : h + 1, :] + jnp.log2(total_ref[h : h + 1, :])
        o_ref[...] = jnp.concatenate(parts, 0).T.astype(o_ref.dtype)


def _backward_kernel(
    pairs_ref, bounds_ref, q_ref, k_ref, v_ref, o_ref, do_ref, lse_ref,
    dq_ref, dk_ref, dv_ref, dq_acc, dk_acc, dv_acc, *, layout, grid,
):  # fmt: skip
    p = pl.program_id(2)
    q_tile, k_tile = pairs_ref[0, p], pairs_ref[1, p]

    @pl.when(p == 0)
    def _():
        dq_acc[...] = jnp.zeros_like(dq_acc)

    @pl.when(pairs_ref[2, p] == 1)
    def _():
        dk_acc[...] = jnp.zeros_like(dk_acc)
        dv_acc[...] = jnp.zeros_like(dv_acc)

    f32 = jnp.float32
    real = layout.real_lanes
    of_q = lambda ref: _valid_rows(real(ref[...]), q_tile, grid.block_q, grid.num_queries)  # noqa: E731
    of_k = lambda ref: _valid_rows(real(ref[...]), k_tile, grid.block_k, grid.num_keys)  # noqa: E731
    q, do, o = of_q(q_ref), of_q(do_ref), of_q(o_ref)
    k, v = of_k(k_ref), of_k(v_ref)
    kt = k.T
    do_o = do.astype(f32) * o.astype(f32)
    items = _items(layout, grid)

    def products(i, _):
        rows, h = items[i]
        q_here, do_here = layout.lanes_of(h, q[rows]), layout.lanes_of(h, do[rows])
        s = _masked_scores(layout, grid, k, q_here, bounds_ref[:, rows], k_tile)
        delta = layout.row_sums(h, do_o[rows])
        return s, layout.dot(v, do_here, (1, 1)), delta, q_here, do_here

    def score_gradients(i, value):
        rows, h = items[i]
        s, dp, delta, q_here, do_here = value
        weights = jnp.exp2(s - lse_ref[h : h + 1, rows])
        ds = weights * (dp - delta)
        return weights.astype(layout.dtype), ds.astype(layout.dtype), q_here, do_here

    def accumulate(i, value):
        rows, h = items[i]
        weights, ds, q_here, do_here = value
        dv_acc[...] += layout.dot(weights, do_here, (1, 0))
        dk_acc[...] += layout.dot(ds, q_here, (1, 0))
        mine = slice(h * layout.head_dim, (h + 1) * layout.head_dim)
        dq_acc[q_tile, mine, rows] += layout.dot(kt[mine], ds, (1, 0))

    pipeline(len(items), (products, score_gradients, accumulate))

    @pl.when(pairs_ref[3, p] == 1)
    def _():
        dk_ref[...] = (dk_acc[...] * LN_2).astype(dk_ref.dtype)
        dv_ref[...] = dv_acc[...].astype(dv_ref.dtype)

    @pl.when(p == pl.num_programs(2) - 1)
    def _():
        for i in range(grid.tiles_q):
            start = i * grid.block_q
            end = min(start + grid.block_q, grid.num_queries)
            dq = (dq_acc[i] * LN_2).T.astype(dq_ref.dtype)
            dq_ref[start:end, :] = dq[: end - start]


def _specs(layout: Layout, grid: Grid):
    """Block specs of (bounds, q-like, k-like, lse)."""
    return (
        pl.BlockSpec((None, 2, grid.block_q), lambda b, n, p, pairs: (pairs[0, p], 0, 0)),
        pl.BlockSpec((None, grid.block_q, layout.width), lambda b, n, p, s: (b, s[0, p], n)),
        pl.BlockSpec((None, grid.block_k, layout.width), lambda b, n, p, s: (b, s[1, p], n)),
        pl.BlockSpec(
            (None, None, None, layout.heads, grid.block_q),
            lambda b, n, p, s: (b, n, s[0, p], 0, 0),
        ),
    )


def forward(q, k, v, layout: Layout, grid: Grid, params, interpret=False):
    """Attention output and statistics.

    Args:
      q: [B, Lq, N * H], times the logit scale and log2(e).
      k, v: [B, Lk, N * H].
      layout: of the heads.
      grid: of the tiles.
      params: pltpu.CompilerParams for a grid of three axes.
      interpret: False, or how to interpret the kernel on another backend.

    Returns:
      (o [B, Lq, N * H] in v's dtype,
       base-2 log-sum-exp f32 [B, groups, query tiles, heads, block_q], for `backward` only)
    """
    bounds, rows, keys, lse = _specs(layout, grid)
    pairs = grid.pairs(keys_outer=False)
    tall = (layout.heads, grid.block_q)
    return pl.pallas_call(
        functools.partial(_forward_kernel, layout=layout, grid=grid),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(q.shape[0], layout.groups, pairs.shape[1]),
            in_specs=[bounds, rows, keys, keys],
            out_specs=[rows, lse],
            scratch_shapes=[
                pltpu.VMEM(tall, jnp.float32),
                pltpu.VMEM(tall, jnp.float32),
                pltpu.VMEM((layout.width, grid.block_q), jnp.float32),
            ],
        ),
        out_shape=[
            jax.ShapeDtypeStruct(q.shape, v.dtype),
            jax.ShapeDtypeStruct((q.shape[0], layout.groups, grid.tiles_q, *tall), jnp.float32),
        ],
        compiler_params=params,
        cost_estimate=cost(layout, q.shape[0], grid.num_scores(pairs), 2, q, k, v, q),
        interpret=interpret,
        name="block_attention_streaming_forward",
    )(jnp.asarray(pairs), jnp.asarray(grid.bounds()), q, k, v)


def backward(q, k, v, o, lse, do, layout: Layout, grid: Grid, params, interpret=False):
    """Gradients of `forward` with respect to q, k and v, in one kernel.

    dq of a whole row is summed in VMEM, which bounds Lq: 4 bytes per query and lane, 4.6 MiB
    for L = 9451.

    Args: as for `forward`; o and lse are its results, do is the gradient of o.

    Returns:
      (dq, dk, dv)
    """
    bounds, rows, keys, lse_spec = _specs(layout, grid)
    pairs = grid.pairs(keys_outer=True)
    tall = pltpu.VMEM((grid.block_k, layout.width), jnp.float32)
    return pl.pallas_call(
        functools.partial(_backward_kernel, layout=layout, grid=grid),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(q.shape[0], layout.groups, pairs.shape[1]),
            in_specs=[bounds, rows, keys, keys, rows, rows, lse_spec],
            out_specs=[
                pl.BlockSpec(
                    (None, grid.num_queries, layout.width),
                    lambda b, n, p, s: (b, 0, n),
                ),
                keys,
                keys,
            ],
            scratch_shapes=[
                pltpu.VMEM((grid.tiles_q, layout.width, grid.block_q), jnp.float32),
                tall,
                tall,
            ],
        ),
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (q, k, v)],
        compiler_params=params,
        cost_estimate=cost(layout, q.shape[0], grid.num_scores(pairs), 5, *(q, k, v, o) * 2),
        interpret=interpret,
        name="block_attention_streaming_backward",
    )(jnp.asarray(pairs), jnp.asarray(grid.bounds()), q, k, v, o, do, lse)
