"""The token pyramid: every number that follows from its list of level shapes."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from var_jax import aspect_ratios

#: Side lengths of the published token pyramids, by image size in pixels (stride 16).
#: 256 and 512 px: FoundationVision/VAR; 1024 px: its authors' text-to-image schedule.
PATCH_NUMS = {
    256: (1, 2, 3, 4, 5, 6, 8, 10, 13, 16),
    512: (1, 2, 3, 4, 6, 9, 13, 18, 24, 32),
    1024: (1, 2, 3, 4, 5, 7, 9, 12, 16, 21, 27, 36, 48, 64),
}


@dataclasses.dataclass(frozen=True)
class ScalePyramid:
    """A coarse-to-fine list of K token maps, flattened level by level to L tokens.

    Inside a level the order is row-major. Immutable and hashable, so that it can be a
    static argument of a compiled function and a field of a flax module.

    Attributes:
      shapes: (height, width) of each level, coarsest first. A one-dimensional level of n
        tokens is (1, n).
      points: optional (y, x) of each token in [0, 1], L pairs. By default the centres of
        the level's grid cells.
      grid: (height, width) of the autoencoder's feature map; the finest level's by default.

    Raises:
      ValueError: a shape is not two positive integers, there is no level, or `points`
        has another length than L.
    """

    shapes: tuple[tuple[int, int], ...]
    points: tuple[tuple[float, float], ...] | None = None
    grid: tuple[int, int] = ()

    def __post_init__(self) -> None:
        if not self.shapes:
            raise ValueError("A pyramid needs at least one level, but shapes is empty.")
        for shape in (*self.shapes, *([self.grid] if self.grid else [])):
            if len(shape) != 2 or any(int(n) != n or n < 1 for n in shape):
                raise ValueError(
                    f"Level shapes are pairs of positive integers (height, width), got {shape!r}."
                )
        object.__setattr__(self, "shapes", tuple((int(h), int(w)) for h, w in self.shapes))
        h, w = self.grid or self.shapes[-1]
        object.__setattr__(self, "grid", (int(h), int(w)))
        if self.points is not None:
            object.__setattr__(self, "points", tuple((float(y), float(x)) for y, x in self.points))
            if len(self.points) != self.length:
                raise ValueError(
                    f"points has {len(self.points)} entries, but the levels {self.shapes} hold "
                    f"{self.length} tokens; give one (y, x) pair a token."
                )

    @classmethod
    def from_patch_nums(cls, patch_nums: Sequence[int], grid: tuple[int, int] = ()) -> ScalePyramid:
        """The pyramid of squares with the given side lengths, e.g. (1, 2, 3, 4, 5, 6, 8)."""
        return cls(tuple((int(n), int(n)) for n in patch_nums), grid=grid)

    @classmethod
    def for_image_size(cls, image_size: int) -> ScalePyramid:
        """The published pyramid for images of 256, 512 or 1024 px."""
        if image_size not in PATCH_NUMS:
            raise ValueError(
                f"There is no published pyramid for {image_size} px; choose one of "
                f"{sorted(PATCH_NUMS)} or give patch_nums."
            )
        return cls.from_patch_nums(PATCH_NUMS[image_size])

    def oblong(self, ratio: float) -> ScalePyramid:
        """The levels of as large an oblong image, height by width; see `aspect_ratios.shapes`.

        Raises:
          ValueError: this one is not of squares.
        """
        return ScalePyramid(aspect_ratios.shapes(self.patch_nums, ratio))

    @property
    def num_levels(self) -> int:
        """K."""
        return len(self.shapes)

    @property
    def patch_nums(self) -> tuple[int, ...]:
        """Side lengths of a pyramid of squares; raises ValueError for any other pyramid."""
        if any(h != w for h, w in self.shapes):
            raise ValueError(f"patch_nums exists only for square levels, got {self.shapes}.")
        return tuple(h for h, _ in self.shapes)

    @property
    def max_side(self) -> int:
        """The longest side of any level."""
        return max(max(shape) for shape in self.shapes)

    def levels_within(self, side: float) -> int:
        """How many levels, from the first on, have no side longer than this."""
        longer = (max(shape) > side for shape in self.shapes)
        return next((k for k, found in enumerate(longer) if found), self.num_levels)

    @functools.cached_property
    def sizes(self) -> tuple[int, ...]:
        """Tokens in each level."""
        return tuple(h * w for h, w in self.shapes)

    @functools.cached_property
    def offsets(self) -> tuple[int, ...]:
        """K + 1 positions: level k holds the tokens offsets[k] to offsets[k + 1] - 1."""
        return tuple(int(n) for n in np.concatenate([[0], np.cumsum(self.sizes)]))

    @property
    def length(self) -> int:
        """L, the number of tokens of all levels."""
        return self.offsets[-1]

    def level(self, k: int) -> slice:
        """The slice of level k along the token axis."""
        return slice(self.offsets[k], self.offsets[k + 1])

    def tokens(self, levels: range) -> slice:
        """The slice of consecutive levels along the token axis."""
        return slice(self.offsets[levels.start], self.offsets[levels.stop])

    def split(self, x, axis: int = 1) -> list:
        """Cuts an array with L entries along `axis` into its K levels."""
        index = [slice(None)] * x.ndim
        parts = []
        for k in range(self.num_levels):
            index[axis] = self.level(k)
            parts.append(x[tuple(index)])
        return parts

    def progress(self, k: int) -> float:
        """k / (K - 1) in [0, 1]: how far level k stands along the pyramid; 0 if K is 1."""
        return k / (self.num_levels - 1) if self.num_levels > 1 else 0.0

    def prefix(self, num_levels: int) -> ScalePyramid:
        """The pyramid of the first `num_levels` levels of the same feature map."""
        if not 1 <= num_levels <= self.num_levels:
            raise ValueError(f"num_levels must be in 1..{self.num_levels}, got {num_levels}.")
        return self.part(range(num_levels))

    def part(self, levels: range) -> ScalePyramid:
        """The pyramid of consecutive levels, one at least, of the same feature map."""
        points = None if self.points is None else self.points[self.tokens(levels)]
        return ScalePyramid(self.shapes[levels.start : levels.stop], points, self.grid)

    def starts_with(self, other: ScalePyramid) -> bool:
        """Whether the other's levels are the first ones of this pyramid."""
        k = other.num_levels
        return k <= self.num_levels and self.prefix(k).shapes == other.shapes

    @functools.cached_property
    def level_ids(self) -> np.ndarray:
        """int32 [L]: the level of each token."""
        return np.repeat(np.arange(self.num_levels, dtype=np.int32), self.sizes)

    @functools.cached_property
    def coordinates(self) -> np.ndarray:
        """float64 [L, 2]: (y, x) of each token in [0, 1]."""
        if self.points is not None:
            return np.asarray(self.points, np.float64)
        cells = []
        for h, w in self.shapes:
            y, x = np.meshgrid((np.arange(h) + 0.5) / h, (np.arange(w) + 0.5) / w, indexing="ij")
            cells.append(np.stack([y, x], -1).reshape(h * w, 2))
        return np.concatenate(cells)
