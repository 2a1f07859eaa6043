"""Pixels as files hold them, uint8, and as networks read and write them, float32 in [-1, 1].

`to_float` and `to_uint8` take NumPy and JAX arrays, inside jit too, and return the same kind.
"""

from __future__ import annotations

import io

import numpy as np
from jaxtyping import Array, Float, Num, UInt8
from PIL import Image


def as_image(image: UInt8[np.ndarray, "H W c"]) -> Image.Image:
    """A picture with one or three channels for Pillow."""
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def encode_png(image: UInt8[np.ndarray, "H W c"]) -> bytes:
    """A picture with one or three channels as the bytes of a PNG file."""
    buffer = io.BytesIO()
    as_image(image).save(buffer, format="PNG")
    return buffer.getvalue()


def to_float(images: Num[Array | np.ndarray, " *shape"]) -> Float[Array | np.ndarray, " *shape"]:
    """uint8 -> float32 in [-1, 1]; floating point is taken to be there already."""
    floats = images.astype(np.float32)
    return floats / 127.5 - 1 if images.dtype == np.uint8 else floats


def to_uint8(images: Float[Array | np.ndarray, " *shape"]) -> UInt8[Array | np.ndarray, " *shape"]:
    """Floating point in [-1, 1] -> uint8, rounded to the nearest value.

    That is floor(255 (x + 1) / 2 + 0.5), clipped. Rounding matters to scores: truncation
    darkens every picture by half a level.
    """
    return (images.astype(np.float32) * 127.5 + 128.0).clip(0, 255).astype(np.uint8)
