"""Levels of oblong images: those that are published for Infinity, and a rule for all others."""

from __future__ import annotations

import math
from collections.abc import Sequence

Shape = tuple[int, int]

#: Side lengths of the levels of a square image of 1024 px (Infinity, arXiv 2412.04431).
SIDES = (1, 2, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48, 64)
#: How many of them, the first ones, are those of 256, 512, 768 and 1024 px.
COUNTS = (7, 10, 12, 13)
#: Height by width -> (rows, columns) of such levels of images as large (FoundationVision/Infinity,
#: infinity/utils/dynamic_resolution.py). Wide images have the same, turned.
_TALL: dict[float, tuple[Shape, ...]] = {
    1.25: (
        *((1, 1), (2, 2), (3, 3), (5, 4), (10, 8), (15, 12), (20, 16)),
        *((25, 20), (30, 24), (35, 28), (45, 36), (55, 44), (70, 56)),
    ),
    1.333: (
        *((1, 1), (2, 2), (4, 3), (8, 6), (12, 9), (16, 12), (20, 15)),
        *((24, 18), (28, 21), (36, 27), (48, 36), (60, 45), (72, 54)),
    ),
    1.5: (
        *((1, 1), (2, 2), (3, 2), (6, 4), (9, 6), (15, 10), (21, 14)),
        *((27, 18), (33, 22), (39, 26), (48, 32), (63, 42), (78, 52)),
    ),
    1.75: (
        *((1, 1), (2, 2), (3, 3), (7, 4), (11, 6), (14, 8), (21, 12)),
        *((28, 16), (35, 20), (42, 24), (56, 32), (70, 40), (84, 48)),
    ),
    2.0: (
        *((1, 1), (2, 2), (4, 2), (6, 3), (10, 5), (16, 8), (22, 11)),
        *((30, 15), (38, 19), (46, 23), (60, 30), (74, 37), (90, 45)),
    ),
    2.5: (
        *((1, 1), (2, 2), (5, 2), (10, 4), (15, 6), (20, 8), (25, 10)),
        *((30, 12), (40, 16), (50, 20), (65, 26), (80, 32), (100, 40)),
    ),
    3.0: (
        *((1, 1), (2, 2), (6, 2), (9, 3), (15, 5), (21, 7), (27, 9)),
        *((36, 12), (45, 15), (54, 18), (72, 24), (90, 30), (111, 37)),
    ),
}
PUBLISHED: dict[float, tuple[Shape, ...]] = {
    1.0: tuple((n, n) for n in SIDES),
    **_TALL,
    **{int(1000 / r) / 1000: tuple((w, h) for h, w in shapes) for r, shapes in _TALL.items()},
}


def parse(text: str) -> float:
    """'16:9', width and height -> height by width.

    Raises:
      ValueError: it is no such ratio, or one beyond 4.
    """
    parts = text.split(":")
    if len(parts) == 2 and all(part.isdecimal() and int(part) for part in parts):
        width, height = map(int, parts)
        if 1 / 4 <= height / width <= 4:
            return height / width
    raise ValueError(
        f"An aspect ratio is width and height, such as 16:9 or 3:4, at most 4:1, got {text!r}."
    )


def shapes(patch_nums: Sequence[int], ratio: float) -> tuple[Shape, ...]:
    """Levels of an oblong image about as large as a square one.

    Those of Infinity's models are the published ones of the nearest published ratio. Other sides n
    become (n sqrt(ratio), n / sqrt(ratio)), rounded, and 1 at least.

    Args:
      patch_nums: side lengths of the levels of the square image.
      ratio: height by width.

    Returns:
      (rows, columns) of each level.
    """
    sides = tuple(patch_nums)
    if len(sides) in COUNTS and sides == SIDES[: len(sides)]:
        nearest = min(PUBLISHED, key=lambda known: abs(known - ratio))
        return PUBLISHED[nearest][: len(sides)]
    stretch = math.sqrt(ratio)
    return tuple((max(1, round(n * stretch)), max(1, round(n / stretch))) for n in sides)


def grid(square: Shape, shape: Shape) -> Shape:
    """The grid of an oblong image's positions, where that of square images is known.

    Args:
      square: (rows, columns); where they differ, it is taken for all.
      shape: of the oblong image's last level.
    """
    if square[0] != square[1] or shape[0] == shape[1]:
        return square
    sides = SIDES if square[0] == SIDES[-1] else square[:1]
    return shapes(sides, shape[0] / shape[1])[-1]
