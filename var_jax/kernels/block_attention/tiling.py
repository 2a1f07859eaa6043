"""How the queries and keys of a block attention are cut into tiles; pure Python and NumPy."""

from __future__ import annotations

import dataclasses
import functools

from var_jax.context import KeySegment

#: Vector registers hold (SUBLANES, LANES) 32-bit values on every TPU generation.
LANES = 128
SUBLANES = 8
#: Rows of a 16-bit register tile, the granularity at which key slices are cheap.
KEY_ALIGN = 16


def round_up(n: int, multiple: int) -> int:
    """The smallest multiple that is at least n."""
    return -(-n // multiple) * multiple


@dataclasses.dataclass(frozen=True)
class RowTile:
    """`count` consecutive, equally wide query tiles which read the same slice of keys.

    Attributes:
      index: number of the first of these tiles among all tiles.
      start: first query of the first tile.
      rows: queries in one tile.
      count: number of tiles.
      lo: first key read; a multiple of 128.
      hi: one past the last key read; a multiple of 16, or the number of keys.
      full_lo, full_hi: the keys that every query sees; the mask is needed outside only.
      segments: (first query, one past the last query, lo, hi) of the segments inside.
    """

    index: int
    start: int
    rows: int
    count: int
    lo: int
    hi: int
    full_lo: int
    full_hi: int
    segments: tuple[tuple[int, int, int, int], ...]


def check_segments(segments: tuple[KeySegment, ...], num_queries: int, num_keys: int) -> None:
    """Raises ValueError unless the segments cover the queries and stay inside the keys."""
    rows = sum(s.rows for s in segments)
    if rows != num_queries:
        raise ValueError(
            f"The key segments describe {rows} queries, but q has {num_queries}; build them with "
            "context.key_segments for the same pyramid."
        )
    for s in segments:
        if s.rows < 1 or not 0 <= s.lo < s.hi <= num_keys:
            raise ValueError(
                f"{s} is not a non-empty interval of the {num_keys} keys with at least one row."
            )
        if s.columns is not None and (s.rows % s.columns.width or (s.hi - s.lo) % s.columns.width):
            raise ValueError(f"{s} does not consist of whole rows of {s.columns.width} tokens.")


def spans(segments: tuple[KeySegment, ...]) -> tuple[tuple[int, int, int, int], ...]:
    """(first query, one past the last query, lo, hi) of each segment; equal neighbours merged."""
    merged: list[tuple[int, int, int, int]] = []
    start = 0
    for s in segments:
        if merged and merged[-1][2:] == (s.lo, s.hi):
            merged[-1] = (merged[-1][0], start + s.rows, s.lo, s.hi)
        else:
            merged.append((start, start + s.rows, s.lo, s.hi))
        start += s.rows
    return tuple(merged)


def _tile(all_spans, start: int, end: int, num_keys: int) -> RowTile:
    inside = tuple(
        (max(a, start), min(b, end), lo, hi) for a, b, lo, hi in all_spans if a < end and b > start
    )
    lo = min(s[2] for s in inside) // LANES * LANES
    hi = min(num_keys, round_up(max(s[3] for s in inside), KEY_ALIGN))
    full_lo = min(hi, round_up(max(s[2] for s in inside), SUBLANES))
    full_hi = min(s[3] for s in inside)
    full_hi = full_hi if full_hi == hi else full_hi // SUBLANES * SUBLANES
    if full_lo >= full_hi:
        full_lo = full_hi = hi
    return RowTile(0, start, end - start, 1, lo, hi, full_lo, full_hi, inside)


@functools.lru_cache(maxsize=256)
def row_tiles(
    segments: tuple[KeySegment, ...], num_keys: int, max_rows: int, max_unrolled: int
) -> tuple[RowTile, ...]:
    """Cuts the queries into tiles so that the fewest (query, key) pairs are computed.

    Dynamic programming over cuts at multiples of 8 queries. A tile costs its rows, rounded up
    to whole lanes, times its keys, plus a fixed overhead.

    Args:
      segments: key interval of each run of queries.
      num_keys: number of keys.
      max_rows: widest tile; a multiple of 128.
      max_unrolled: neighbouring tiles of more (query, key) pairs than this, which differ only
        in their place, become one entry with a count, which is a loop in the kernel.

    Returns:
      Tiles in the order of the queries.
    """
    all_spans = spans(segments)
    num_queries = all_spans[-1][1]
    cuts = [*range(0, num_queries, SUBLANES), num_queries]
    overhead = LANES * 64
    best: list[tuple[float, int]] = [(0, 0)]
    for j in range(1, len(cuts)):
        options = []
        for i in range(j - 1, -1, -1):
            if cuts[j] - cuts[i] > max_rows:
                break
            tile = _tile(all_spans, cuts[i], cuts[j], num_keys)
            area = round_up(tile.rows, LANES) * (tile.hi - tile.lo)
            options.append((best[i][0] + area + overhead, i))
        best.append(min(options))
    tiles = []
    j = len(cuts) - 1
    while j:
        i = best[j][1]
        tiles.append(_tile(all_spans, cuts[i], cuts[j], num_keys))
        j = i
    merged: list[RowTile] = []
    for index, tile in enumerate(reversed(tiles)):
        tile = dataclasses.replace(tile, index=index)
        last = merged[-1] if merged else None
        if (
            last is not None
            and len(tile.segments) == len(last.segments) == 1
            and tile.segments[0][2:] == last.segments[0][2:]
            and tile.rows == last.rows
            and last.start % KEY_ALIGN == 0
            and tile.rows % KEY_ALIGN == 0
            and tile.rows * (tile.hi - tile.lo) > max_unrolled
        ):
            merged[-1] = dataclasses.replace(last, count=last.count + 1)
        else:
            merged.append(tile)
    return tuple(merged)


def num_tiles(tiles: tuple[RowTile, ...]) -> int:
    """All tiles, the repeated ones counted."""
    return sum(t.count for t in tiles)


def num_scores(tiles: tuple[RowTile, ...]) -> int:
    """(query, key) pairs computed for one head."""
    return sum(t.count * t.rows * (t.hi - t.lo) for t in tiles)
