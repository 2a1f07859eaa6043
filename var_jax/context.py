"""Who sees whom: which levels of the pyramid a level attends to.

A context is one function, `window(level)`, and where a token sees only what is near it in its own
level, a second one, `neighbourhood(level)`. The attention kernel's key intervals, the dense
reference mask and what a cache may drop all follow from them here, so they cannot disagree.
"""

from __future__ import annotations

import dataclasses
from typing import Protocol, runtime_checkable

import numpy as np

from var_jax.pyramid import ScalePyramid


class Context(Protocol):
    """A hashable rule of visibility between levels."""

    def window(self, level: int) -> tuple[int, int]:
        """The first and the last level, inclusive, that `level` attends to."""


@runtime_checkable
class LocalContext(Context, Protocol):
    """A context in which the tokens of some levels see only a part of their own level."""

    def neighbourhood(self, level: int) -> int | None:
        """Side of the square of tokens that a token of `level` sees; None is the whole level.

        The square is centred on the token and, at the edges, shifted to stay inside the level; a
        side that is longer than one of the level counts as that one. A level that has one must see
        itself alone.
        """


@dataclasses.dataclass(frozen=True)
class BlockCausal:
    """Each level sees itself and all coarser levels (VAR, arXiv 2404.02905, section 3.2)."""

    def window(self, level: int) -> tuple[int, int]:
        return 0, level


@dataclasses.dataclass(frozen=True)
class OwnScale:
    """Each level sees itself alone (HMAR, arXiv 2506.04421): no cache is needed.

    What the levels before have drawn reaches it through its inputs.
    """

    def window(self, level: int) -> tuple[int, int]:
        return level, level


@dataclasses.dataclass(frozen=True)
class OwnNeighbourhood:
    """Each level sees itself alone, and fine ones not all of it (MVAR, arXiv 2505.12742).

    Attributes:
      first: from this level on, a token sees the tokens near it; before, its whole level.
      side: of the square that is near, odd; see `LocalContext.neighbourhood`.
    """

    first: int
    side: int = 7

    def __post_init__(self) -> None:
        if self.side < 1 or self.side % 2 == 0:
            raise ValueError(f"side must be odd and 1 or more, got {self.side}.")

    def window(self, level: int) -> tuple[int, int]:
        return level, level

    def neighbourhood(self, level: int) -> int | None:
        return self.side if level >= self.first else None


@dataclasses.dataclass(frozen=True)
class RecentLevels:
    """Each level sees itself and the `num_previous` levels before it; with 0 it is `OwnScale`."""

    num_previous: int

    def __post_init__(self) -> None:
        if self.num_previous < 0:
            raise ValueError(f"num_previous must be 0 or more, got {self.num_previous}.")

    def window(self, level: int) -> tuple[int, int]:
        return max(0, level - self.num_previous), level


def _first_seen(size: int, side: int) -> np.ndarray:
    """int [size]: the first of the `side` places around each place, shifted to stay inside."""
    return np.clip(np.arange(size) - side // 2, 0, size - side)


@dataclasses.dataclass(frozen=True)
class Columns:
    """Queries and keys stand in rows of a grid, and a query sees the columns near its own.

    Attributes:
      width: tokens of a row of the grid.
      side: number of columns seen, at most width; shifted at the edges to stay inside.
    """

    width: int
    side: int

    def mask(self, num_queries: int, num_keys: int) -> np.ndarray:
        """bool [queries, keys], both whole rows of the grid: True where a query sees a key."""
        column = np.arange(self.width)
        first = _first_seen(self.width, self.side)[:, None]
        seen = (column >= first) & (column < first + self.side)
        return np.tile(seen, (num_queries // self.width, num_keys // self.width))


@dataclasses.dataclass(frozen=True)
class KeySegment:
    """Consecutive queries that share one interval of keys.

    Attributes:
      rows: number of queries.
      lo: first key they see.
      hi: one past the last key they see.
      columns: which keys of the interval each of them sees; None is all.
    """

    rows: int
    lo: int
    hi: int
    columns: Columns | None = None

    @property
    def pairs(self) -> int:
        """Number of (query, key) pairs that see each other."""
        keys = self.hi - self.lo
        if self.columns is not None:
            keys = keys // self.columns.width * self.columns.side
        return self.rows * keys

    def sees_all(self, lo: int, hi: int) -> bool:
        """Whether its queries see the keys [lo, hi), all of them and no others."""
        return self.columns is None and (self.lo, self.hi) == (lo, hi)


def key_segments(
    pyramid: ScalePyramid,
    context: Context,
    levels: range | None = None,
    cached: tuple[int, ...] = (),
) -> tuple[KeySegment, ...]:
    """The key interval of each level's queries, in positions among the keys; hashable.

    A level with a neighbourhood gives a segment for each row of its grid, since the rows that it
    sees are one interval of keys; but one segment where the neighbourhood is the whole level.

    Args:
      pyramid: of the tokens.
      context: which levels a level sees.
      levels: consecutive ones whose tokens are the queries; all by default.
      cached: number of keys of each level before them that a cache holds, coarsest first and up to
        the last one before `levels`. They come first among the keys.

    Raises:
      ValueError: a window is empty, leaves the pyramid, or is no longer in the cache; a level with
        a neighbourhood sees others.
    """
    levels = range(pyramid.num_levels) if levels is None else levels
    # First key of each level, from the first cached one to one past the last.
    sizes = (*cached, *pyramid.sizes[levels.start : levels.stop])
    starts = np.concatenate([[0], np.cumsum(sizes, dtype=int)]).tolist()
    first = levels.start - len(cached)
    segments = []
    for k in levels:
        lo, hi = context.window(k)
        if not 0 <= lo <= hi < pyramid.num_levels:
            raise ValueError(
                f"{context} gives level {k} the window ({lo}, {hi}), which is not inside the "
                f"levels 0..{pyramid.num_levels - 1}."
            )
        if lo < first:
            raise ValueError(f"Level {k} looks back to level {lo}, the cache to level {first}.")
        whole = KeySegment(pyramid.sizes[k], starts[lo - first], starts[hi + 1 - first])
        side = context.neighbourhood(k) if isinstance(context, LocalContext) else None
        if side is None:
            segments.append(whole)
            continue
        if (lo, hi) != (k, k):
            raise ValueError(
                f"{context} gives level {k} a neighbourhood and the window ({lo}, {hi}); a level "
                "that has a neighbourhood must see itself alone."
            )
        segments.extend(_near(whole, pyramid.shapes[k], side))
    return tuple(segments)


def _near(whole: KeySegment, shape: tuple[int, int], side: int) -> list[KeySegment]:
    """The rows of a level's grid, each with the rows and columns that it sees."""
    height, width = shape
    if height <= side and width <= side:
        return [whole]
    columns = Columns(width, side) if side < width else None
    rows = min(side, height)
    starts = (whole.lo + width * _first_seen(height, rows)).tolist()
    return [KeySegment(width, lo, lo + rows * width, columns) for lo in starts]


def dense_mask(segments: tuple[KeySegment, ...], num_keys: int) -> np.ndarray:
    """bool [queries, keys]: True where a query sees a key."""
    mask = np.zeros((sum(s.rows for s in segments), num_keys), bool)
    start = 0
    for s in segments:
        seen = True if s.columns is None else s.columns.mask(s.rows, s.hi - s.lo)
        mask[start : start + s.rows, s.lo : s.hi] = seen
        start += s.rows
    return mask


def first_level_kept(pyramid: ScalePyramid, context: Context, level: int) -> int:
    """The coarsest level that a cache must still hold once `level` has been processed.

    Returns level + 1 if no later level looks back at all.
    """
    later = [context.window(k)[0] for k in range(level + 1, pyramid.num_levels)]
    needed = [lo for lo in later if lo <= level]
    return min(needed, default=level + 1)
