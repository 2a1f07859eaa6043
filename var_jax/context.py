"""Who sees whom: which levels of the pyramid a level attends to.

A context is one function, `window(level)`. The attention kernel's key intervals, the dense
reference mask and what a cache may drop all follow from it here, so they cannot disagree.
"""

from __future__ import annotations

import dataclasses
from typing import Protocol

import numpy as np

from var_jax.pyramid import ScalePyramid


class Context(Protocol):
    """A hashable rule of visibility between levels."""

    def window(self, level: int) -> tuple[int, int]:
        """The first and the last level, inclusive, that `level` attends to."""


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
class RecentLevels:
    """Each level sees itself and the `num_previous` levels before it; with 0 it is `OwnScale`."""

    num_previous: int

    def __post_init__(self) -> None:
        if self.num_previous < 0:
            raise ValueError(f"num_previous must be 0 or more, got {self.num_previous}.")

    def window(self, level: int) -> tuple[int, int]:
        return max(0, level - self.num_previous), level


@dataclasses.dataclass(frozen=True)
class KeySegment:
    """Consecutive queries that share one interval of keys.

    Attributes:
      rows: number of queries.
      lo: first key they see.
      hi: one past the last key they see.
    """

    rows: int
    lo: int
    hi: int


def key_segments(
    pyramid: ScalePyramid,
    context: Context,
    levels: range | None = None,
    cached: tuple[int, ...] = (),
) -> tuple[KeySegment, ...]:
    """The key interval of each level's queries, in positions among the keys; hashable.

    Args:
      pyramid: of the tokens.
      context: which levels a level sees.
      levels: consecutive ones whose tokens are the queries; all by default.
      cached: number of keys of each level before them that a cache holds, coarsest first and up to
        the last one before `levels`. They come first among the keys.

    Raises:
      ValueError: a window is empty, leaves the pyramid, or is no longer in the cache.
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
        segments.append(KeySegment(pyramid.sizes[k], starts[lo - first], starts[hi + 1 - first]))
    return tuple(segments)


def dense_mask(segments: tuple[KeySegment, ...], num_keys: int) -> np.ndarray:
    """bool [queries, keys]: True where a query sees a key."""
    keys = np.arange(num_keys)
    rows = [np.tile((keys >= s.lo) & (keys < s.hi), (s.rows, 1)) for s in segments]
    return np.concatenate(rows)


def first_level_kept(pyramid: ScalePyramid, context: Context, level: int) -> int:
    """The coarsest level that a cache must still hold once `level` has been processed.

    Returns level + 1 if no later level looks back at all.
    """
    later = [context.window(k)[0] for k in range(level + 1, pyramid.num_levels)]
    needed = [lo for lo in later if lo <= level]
    return min(needed, default=level + 1)
