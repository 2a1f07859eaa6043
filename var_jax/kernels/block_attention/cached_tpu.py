"""Attention to cached levels on TPU, read where the cache holds them.

A cache is stacked over blocks, and a loop over blocks that slices it copies keys and values before
a kernel can read them. Here the whole stack is an operand and the number of the block an index of
its DMAs. One program computes one example and as many heads as fit; the levels are put one below
the other in VMEM, each from a multiple of 16 rows on, and what lies between them is masked.
Scores are transposed and heads are separated as in `whole_row`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from var_jax.kernels.block_attention import tiling
from var_jax.kernels.block_attention.layout import LOG2_E, MASKED, Layout, cost, pipeline

#: Keys beyond which the unrolled code of one tile outgrows the instruction memory.
MAX_KEYS = 4096


def rows_of_levels(lengths: Sequence[int]) -> list[int]:
    """First row of each level in VMEM, and one past the last."""
    starts = [0]
    for length in lengths:
        starts.append(starts[-1] + tiling.round_up(length, tiling.KEY_ALIGN))
    return starts


def vmem_needed(num_queries: int, lengths: Sequence[int], lanes: int, itemsize: int) -> int:
    """About how much VMEM a program of so many lanes takes, in bytes."""
    padded = rows_of_levels(lengths)[-1]
    blocks = 2 * itemsize * lanes * 2 * (num_queries + padded)
    scratch = 2 * itemsize * lanes * padded
    rows = min(num_queries, 2 * tiling.LANES)
    return blocks + scratch + padded * rows * (2 * 4 + itemsize) * 3


def choose_groups(layout: Layout, num_queries: int, lengths: Sequence[int], vmem_bytes: int) -> int:
    """Groups of heads in one program, the most that fit; 0 if none does or heads do not fill lanes.

    Args:
      layout: of the heads.
      num_queries: Lq.
      lengths: keys of each level, the queries' own last.
      vmem_bytes: of the chip.
    """
    if layout.num_heads % layout.heads or layout.width % tiling.LANES or sum(lengths) > MAX_KEYS:
        return 0
    fitting = (
        groups
        for groups in range(layout.groups, 0, -1)
        if layout.groups % groups == 0
        and vmem_needed(num_queries, lengths, groups * layout.width, layout.dtype.itemsize)
        < 0.6 * vmem_bytes
    )
    return next(fitting, 0)


def _kernel(
    block_ref, q_ref, *refs, layout: Layout, groups: int, lengths: tuple[int, ...], scale: float
):
    del block_ref  # Read by the index maps.
    levels, (o_ref, keys_ref, values_ref) = refs[:-3], refs[-3:]
    starts = rows_of_levels(lengths)
    num_queries, padded = q_ref.shape[0], starts[-1]
    row = jax.lax.broadcasted_iota(jnp.int32, (padded, 1), 0)
    empty = functools.reduce(
        jnp.logical_or,
        ((row >= a + n) & (row < b) for a, b, n in zip(starts, starts[1:], lengths, strict=False)),
    )
    hidden = jnp.where(empty, MASKED, 0.0)

    @pl.loop(0, groups)
    def _(group):
        lanes = pl.ds(pl.multiple_of(group * layout.width, layout.width), layout.width)
        # Rows between levels must be finite: a probability of 0 does not hide what is not.
        values_ref[...] = jnp.zeros_like(values_ref)
        keys_ref[...] = jnp.zeros_like(keys_ref)
        for i, (start, length) in enumerate(zip(starts, lengths, strict=False)):
            keys_ref[start : start + length, :] = levels[2 * i][:, lanes]
            values_ref[start : start + length, :] = levels[2 * i + 1][:, lanes]
        keys, values = keys_ref[...], values_ref[...].T
        tiles = range(0, num_queries, 2 * tiling.LANES)
        items = [(start, h) for start in tiles for h in range(layout.heads)]
        outputs: list[jax.Array] = []

        def scores(i, _):
            start, h = items[i]
            q = q_ref[start : min(start + 2 * tiling.LANES, num_queries), lanes]
            q = q.astype(jnp.float32) * (scale * LOG2_E)
            q = layout.lanes_of(h, q).astype(layout.dtype)
            return layout.dot(keys, q, (1, 1))

        def softmax(_, s):
            s = s + hidden
            p = jnp.exp2(s - jnp.max(s, 0, keepdims=True))
            return p.astype(layout.dtype), 1.0 / jnp.sum(p, 0, keepdims=True)

        def output(i, value):
            start, h = items[i]
            p, inverse = value
            mine = slice(h * layout.head_dim, (h + 1) * layout.head_dim)
            outputs.append(layout.dot(values[mine], p, (1, 0)) * inverse)
            if h == layout.heads - 1:
                o = jnp.concatenate(outputs, 0).T.astype(o_ref.dtype)
                o_ref[start : min(start + 2 * tiling.LANES, num_queries), lanes] = o
                outputs.clear()

        pipeline(len(items), (scores, softmax, output))


def attend(
    q: Float[Array, "B Lq D"],
    k: Float[Array, "B n D"],
    v: Float[Array, "B n D"],
    cached: Sequence[Float[Array, "blocks B _ D"]],
    block: Int[Array, ""],
    *,
    layout: Layout,
    groups: int,
    scale: float,
    vmem_limit: int,
    interpret: Any = False,
) -> Float[Array, "B Lq D"]:
    """Every query sees all keys.

    Args:
      q, k, v: of the level, D = N * H.
      cached: keys and values of each earlier level, in turns.
      block: whose keys and values.
      layout: of the heads.
      groups: of heads in one program, see `choose_groups`.
      scale: logits = scale * q . k.
      vmem_limit: of a program, in bytes.
      interpret: False, or a pltpu.InterpretParams to run without a TPU.
    """
    batch, num_queries, width = q.shape
    lanes = groups * layout.width
    lengths = (*(x.shape[2] for x in cached[::2]), k.shape[1])

    def own(rows: int) -> pl.BlockSpec:
        return pl.BlockSpec((None, rows, lanes), lambda b, n, _: (b, 0, n))

    def stacked(rows: int) -> pl.BlockSpec:
        return pl.BlockSpec((None, None, rows, lanes), lambda b, n, i: (i[0], b, 0, n))

    padded = rows_of_levels(lengths)[-1]
    scratch = pltpu.VMEM((padded, layout.width), layout.dtype)
    one_block = [jax.ShapeDtypeStruct(x.shape[1:], x.dtype) for x in cached]
    call = pl.pallas_call(
        functools.partial(_kernel, layout=layout, groups=groups, lengths=lengths, scale=scale),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(batch, layout.groups // groups),
            in_specs=[
                own(num_queries),
                *(stacked(x.shape[2]) for x in cached),
                own(k.shape[1]),
                own(k.shape[1]),
            ],
            out_specs=own(num_queries),
            scratch_shapes=[scratch, scratch],
        ),
        out_shape=jax.ShapeDtypeStruct(q.shape, v.dtype),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel"), vmem_limit_bytes=vmem_limit
        ),
        cost_estimate=cost(layout, batch, num_queries * sum(lengths), 2, q, k, v, q, *one_block),
        interpret=interpret,
        name="cached_attention",
    )
    return call(block.reshape(1), q, *cached, k, v)
