"""Pictures to look at."""

from __future__ import annotations

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from var_jax.pixels import as_image


def make_grid(
    images: UInt8[np.ndarray, "n H W c"], columns: int, padding: int = 2, background: int = 255
) -> UInt8[np.ndarray, "h w c"]:
    """Lays images out in rows, left to right.

    Args:
      images: all of one size.
      columns: images per row.
      padding: pixels between images and around them.
      background: grey value of the padding.
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


def as_picture(images: UInt8[np.ndarray, "n H W c"], columns: int, zoom: int = 1) -> Image.Image:
    """A grid of images as a picture that a notebook shows; see `make_grid`.

    Args:
      images: all of one size, with one or three channels.
      columns: images per row.
      zoom: screen pixels for each side of a pixel.
    """
    return as_image(make_grid(images, columns).repeat(zoom, 0).repeat(zoom, 1))
