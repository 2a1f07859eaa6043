"""Block attention on TPU: chooses tiles, and joins the forward and the backward kernels."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from var_jax.context import KeySegment
from var_jax.kernels.block_attention import cached_tpu, reference, streaming, tiling, whole_row
from var_jax.kernels.block_attention.layout import LOG2_E, Layout

#: VMEM of a core of the smallest supported TPU (v4).
SMALLEST_VMEM = 16 * 2**20
#: (query, key) pairs beyond which equal tiles become a loop instead of being unrolled.
MAX_UNROLLED = 256 * 1024
#: Streaming tiles (queries, keys, queries in flight together), and those of the smallest TPU.
STREAMING_TILES = (512, 1024, 256)
SMALL_STREAMING_TILES = (512, 512, 128)


def vmem_bytes() -> int:
    """VMEM of the chip that is compiled for, in bytes.

    The chip is the default device, or the one of the abstract mesh in force when compiling
    ahead of time. If it is neither, the smallest supported TPU's is assumed.
    """
    try:
        return pltpu.get_tpu_info().vmem_capacity_bytes
    except (ValueError, NotImplementedError):
        return SMALLEST_VMEM


@dataclasses.dataclass(frozen=True)
class _Call:
    """The static part of one call; hashable.

    Attributes:
      segments, num_keys, layout: what to compute.
      max_rows: queries of a whole-row tile; 0 streams.
      interpret: False, or pltpu.InterpretParams.
    """

    segments: tuple[KeySegment, ...]
    num_keys: int
    layout: Layout
    max_rows: int
    interpret: Any

    def tiles(self) -> tuple[tiling.RowTile, ...]:
        return tiling.row_tiles(self.segments, self.num_keys, self.max_rows, MAX_UNROLLED)

    def grid(self) -> streaming.Grid:
        num_queries = sum(s.rows for s in self.segments)
        small = vmem_bytes() <= SMALLEST_VMEM
        block_q, block_k, sub_q = SMALL_STREAMING_TILES if small else STREAMING_TILES
        block_q = min(block_q, tiling.round_up(num_queries, tiling.LANES))
        block_k = min(block_k, tiling.round_up(self.num_keys, tiling.LANES))
        sub_q = sub_q if block_q % sub_q == 0 else tiling.LANES
        return streaming.Grid(self.segments, self.num_keys, block_q, block_k, sub_q)

    def params(self, *semantics: str) -> pltpu.CompilerParams:
        # Some VMEM belongs to the compiler: v4 refuses a kernel that asks for all of it.
        limit = vmem_bytes() - 2**20
        return pltpu.CompilerParams(dimension_semantics=semantics, vmem_limit_bytes=limit)


def whole_row_bytes(num_queries: int, num_keys: int, rows: int, width: int, itemsize: int) -> int:
    """About how much VMEM the whole-row backward kernel needs, the larger of the two."""
    blocks = 2 * itemsize * width * (4 * num_queries + 4 * num_keys)
    scratch = num_keys * width * (2 * itemsize + 2 * 4)
    in_flight = num_keys * rows * (2 * 4 + 2 * itemsize) * 3 // 2
    return blocks + scratch + in_flight


def _choose_rows(num_queries: int, num_keys: int, width: int, itemsize: int) -> int:
    """Queries of a whole-row tile, or 0 if the row does not fit into VMEM."""
    wide = tiling.LANES if num_queries <= tiling.LANES else 2 * tiling.LANES
    for rows in (wide, tiling.LANES):
        if whole_row_bytes(num_queries, num_keys, rows, width, itemsize) < 0.8 * vmem_bytes():
            # Above 4096 keys the unrolled code of one tile outgrows the instruction memory.
            return rows if num_keys <= 4096 else 0
    return 0


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend_row(call: _Call, q, k, v, scales):
    return _attend_row_forward(call, q, k, v, scales)[0]


def _attend_row_forward(call: _Call, q, k, v, scales):
    o, lse = whole_row.forward(
        q, k, v, scales, call.tiles(), call.layout, call.max_rows,
        call.params("parallel", "parallel"), call.interpret,
    )  # fmt: skip
    return o, (q, k, v, scales, o, lse)


def _attend_row_backward(call: _Call, residuals, do):
    q, k, v, scales, o, lse = residuals
    dq, dk, dv, dscale = whole_row.backward(
        q, k, v, scales, o, lse, do.astype(v.dtype), call.tiles(), call.layout, call.max_rows,
        call.params("parallel", "parallel"), call.interpret,
    )  # fmt: skip
    lanes = dscale.sum((0, 2)).reshape(-1, call.layout.head_dim)
    if not call.layout.normalize:
        lanes = jnp.zeros_like(lanes)
    return dq, dk, dv, lanes.sum(-1)


_attend_row.defvjp(_attend_row_forward, _attend_row_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend_stream(call: _Call, q, k, v):
    return _attend_stream_forward(call, q, k, v)[0]


def _attend_stream_forward(call: _Call, q, k, v):
    params = call.params("parallel", "parallel", "arbitrary")
    o, lse = streaming.forward(q, k, v, call.layout, call.grid(), params, call.interpret)
    return o, (q, k, v, o, lse)


def _attend_stream_backward(call: _Call, residuals, do):
    q, k, v, o, lse = residuals
    params = call.params("parallel", "parallel", "arbitrary")
    do = do.astype(v.dtype)
    return streaming.backward(q, k, v, o, lse, do, call.layout, call.grid(), params, call.interpret)


_attend_stream.defvjp(_attend_stream_forward, _attend_stream_backward)


def _padded_head_dim(head_dim: int) -> int:
    """The next width that divides 128 or is a multiple of it."""
    if head_dim > tiling.LANES:
        return tiling.round_up(head_dim, tiling.LANES)
    return max(tiling.SUBLANES, 1 << (head_dim - 1).bit_length())


def block_attention(
    q: Float[Array, "B Lq N H"],
    k: Float[Array, "B Lk N H"],
    v: Float[Array, "B Lk N H"],
    segments: tuple[KeySegment, ...],
    *,
    scale: float = 1.0,
    log_scale: Float[Array, " N"] | None = None,
    max_rows: int | None = None,
    interpret: Any = False,
) -> Float[Array, "B Lq N H"]:
    """Attention by the Mosaic kernels; forward and backward.

    [B, L, N, H] is read as [B, L, N * H], 128 lanes at a time: in a model whose projections
    produce that array, no copy is made. Any H works; one that neither divides 128 nor is a
    multiple of it is padded with zeros.

    The result, and all arguments but two, are those of
    `var_jax.kernels.block_attention.block_attention`.

    Args:
      max_rows: queries of a whole-row tile, a multiple of 128; 0 streams tiles of keys; None
        chooses by the chip's VMEM.
      interpret: False, or a pltpu.InterpretParams to run without a TPU.

    Raises:
      TypeError: q, k and v are not all bfloat16 or all float32.
      ValueError: a segment has columns.
    """
    if any(s.columns for s in segments):
        raise ValueError(
            "implementation 'pallas_tpu' gives every query a whole interval of keys, and has no "
            "neighbourhoods within a level; use 'xla' or None."
        )
    if not q.dtype == k.dtype == v.dtype or q.dtype not in (jnp.bfloat16, jnp.float32):
        raise TypeError(
            "implementation 'pallas_tpu' takes q, k and v in bfloat16 or all in float32, got "
            f"{q.dtype}, {k.dtype} and {v.dtype}."
        )
    batch, num_queries, num_heads, head_dim = q.shape
    num_keys = k.shape[1]
    tiling.check_segments(segments, num_queries, num_keys)
    padded = _padded_head_dim(head_dim)
    if padded != head_dim:
        q, k, v = (jnp.pad(x, ((0, 0),) * 3 + ((0, padded - head_dim),)) for x in (q, k, v))
    heads = min(max(1, tiling.LANES // padded), num_heads)
    layout = Layout(padded, heads, num_heads, log_scale is not None, jnp.dtype(q.dtype))
    if max_rows is None:
        itemsize = layout.dtype.itemsize
        max_rows = _choose_rows(num_queries, num_keys, layout.width, itemsize)
    call = _Call(segments, num_keys, layout, max_rows, interpret)
    flat = lambda x: x.reshape(*x.shape[:2], num_heads * padded)  # noqa: E731
    if max_rows:
        if log_scale is None:
            scales = jnp.full((num_heads,), scale, jnp.float32)
        else:
            scales = reference.head_scales(log_scale)
        scales = jnp.pad(scales, (0, layout.groups * heads - num_heads))
        out = _attend_row(call, flat(q), flat(k), flat(v), scales)
    else:
        qs, ks = reference.scaled_operands(q, k, scale, log_scale)
        qs = (qs * LOG2_E).astype(q.dtype)
        out = _attend_stream(call, flat(qs), flat(ks.astype(k.dtype)), flat(v))
    return out.reshape(batch, num_queries, num_heads, padded)[..., :head_dim]


def cached_attention(
    q: Float[Array, "B Lq N H"],
    k: Float[Array, "B n N H"],
    v: Float[Array, "B n N H"],
    cached: Sequence[tuple[Float[Array, "blocks B _ D"], Float[Array, "blocks B _ D"]]],
    block: Int[Array, ""],
    segments: tuple[KeySegment, ...],
    *,
    scale: float = 1.0,
    interpret: Any = False,
) -> Float[Array, "B Lq N H"]:
    """Attention to cached levels; see `var_jax.kernels.block_attention.cached_attention`.

    Heads that do not fill 128 lanes and very long rows go through `block_attention`, with a copy of
    the block's keys and values.
    """
    num_queries, num_heads, head_dim = q.shape[1:]
    layout = Layout(
        head_dim, max(1, tiling.LANES // head_dim), num_heads, False, jnp.dtype(q.dtype)
    )
    lengths = (*(keys.shape[2] for keys, _ in cached), k.shape[1])
    groups = cached_tpu.choose_groups(layout, num_queries, lengths, vmem_bytes())
    if not groups:
        k, v = reference.with_cached(k, v, cached, block)
        return block_attention(q, k, v, segments, scale=scale, interpret=interpret)
    flat = lambda x: x.reshape(*x.shape[:-2], num_heads * head_dim)  # noqa: E731
    out = cached_tpu.attend(
        flat(q),
        flat(k),
        flat(v),
        [x for pair in cached for x in pair],
        block,
        layout=layout,
        groups=groups,
        scale=scale,
        vmem_limit=vmem_bytes() - 2**20,
        interpret=interpret,
    )
    return out.reshape(q.shape)
