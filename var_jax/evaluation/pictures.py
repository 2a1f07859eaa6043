"""Pictures to look at: pixels from decoder outputs, and grids."""

from __future__ import annotations

import numpy as np


def to_uint8(images) -> np.ndarray:
    """Images float [..., H, W, c] in [-1, 1] -> uint8, rounded to the nearest value.

    That is floor(255 (x + 1) / 2 + 0.5), clipped. Rounding matters to scores: truncation
    darkens every picture by half a level.
    """
    return np.clip(np.floor(np.asarray(images, np.float32) * 127.5 + 128.0), 0, 255).astype(
        np.uint8
    )


def grid(images: np.ndarray, columns: int, padding: int = 2, background: int = 255) -> np.ndarray:
    """Lays images out in rows, left to right.

    Args:
      images: uint8 [N, H, W, c].
      columns: images a row.
      padding: pixels between images and around them.
      background: grey value of the padding.

    Returns:
      uint8 [rows * (H + padding) + padding, columns * (W + padding) + padding, c].
    """
    count, height, width, channels = images.shape
    rows = -(-count // columns)
    shape = (rows * (height + padding) + padding, columns * (width + padding) + padding, channels)
    out = np.full(shape, background, np.uint8)
    for i, image in enumerate(images):
        y = padding + i // columns * (height + padding)
        x = padding + i % columns * (width + padding)
        out[y : y + height, x : x + width] = image
    return out
