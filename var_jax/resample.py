"""Resizing feature maps by constant matrices; most agree with PyTorch's `F.interpolate`.

A separable resize is two matrix products, one per axis: exact to rounding, differentiable,
and a good fit for the matrix unit. `jax.image.resize` computes other functions: its cubic
kernel has a = -0.5 and it antialiases when it shrinks.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


@functools.cache
def area_matrix(size_in: int, size_out: int) -> Float[np.ndarray, "o i"]:
    """Adaptive average pooling, PyTorch's `mode='area'`.

    Output cell i is the mean of the inputs from floor(i * in / out) to
    ceil((i + 1) * in / out) - 1. Each row sums to 1.
    """
    matrix = np.zeros((size_out, size_in))
    for i in range(size_out):
        start = i * size_in // size_out
        stop = -(-(i + 1) * size_in // size_out)
        matrix[i, start:stop] = 1.0 / (stop - start)
    matrix.flags.writeable = False
    return matrix


@functools.cache
def bicubic_matrix(size_in: int, size_out: int) -> Float[np.ndarray, "o i"]:
    """Cubic convolution with a = -0.75, half-pixel centres, clamped borders, no antialiasing.

    PyTorch's `mode='bicubic', align_corners=False` (Keys 1981 with a = -0.75). Each row
    sums to 1.
    """
    a = -0.75

    def weight(x: float) -> float:
        x = abs(x)
        if x <= 1:
            return ((a + 2) * x - (a + 3)) * x * x + 1
        if x < 2:
            return ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
        return 0.0

    matrix = np.zeros((size_out, size_in))
    for i in range(size_out):
        centre = (i + 0.5) * size_in / size_out - 0.5
        left = int(np.floor(centre))
        for tap in range(left - 1, left + 3):
            matrix[i, min(max(tap, 0), size_in - 1)] += weight(centre - tap)
    matrix.flags.writeable = False
    return matrix


@functools.cache
def bilinear_matrix(size_in: int, size_out: int) -> np.ndarray:
    """The two nearest inputs by distance: half-pixel centres, clamped borders, no antialiasing.

    PyTorch's `mode='bilinear', align_corners=False`, and its 'trilinear' over a single frame.

    Returns:
      float64 [size_out, size_in]; each row sums to 1.
    """
    matrix = np.zeros((size_out, size_in))
    for i in range(size_out):
        centre = (i + 0.5) * size_in / size_out - 0.5
        left = int(np.floor(centre))
        for tap in (left, left + 1):
            matrix[i, min(max(tap, 0), size_in - 1)] += 1 - abs(centre - tap)
    matrix.flags.writeable = False
    return matrix


@functools.cache
def cosine_matrix(size_in: int, size_out: int) -> Float[np.ndarray, "o i"]:
    """The same sum of cosines, sampled at other points: those of the lowest frequencies.

    The discrete cosine transform of the input gives the sum; only the frequencies that both sizes
    can hold are kept. So up after down is a projection on the lowest frequencies, and down after up
    changes nothing. Each row sums to 1.
    """
    count = min(size_in, size_out)

    def basis(size: int) -> np.ndarray:
        # DCT-II, orthonormal: [frequency, place].
        angles = np.pi / size * np.arange(count)[:, None] * (np.arange(size) + 0.5)
        scale = np.where(np.arange(count) == 0, 1.0, 2.0)[:, None] / size
        return np.sqrt(scale) * np.cos(angles)

    matrix = basis(size_out).T @ basis(size_in) * np.sqrt(size_out / size_in)
    matrix.flags.writeable = False
    return matrix


_METHODS = {
    "area": area_matrix,
    "bicubic": bicubic_matrix,
    "bilinear": bilinear_matrix,
    "cosine": cosine_matrix,
}


def resize_matrix(method: str, size_in: int, size_out: int) -> Float[np.ndarray, "o i"]:
    """The matrix of a method: 'area', 'bicubic', 'bilinear' or 'cosine'.

    Raises:
      ValueError: unknown method.
    """
    if method not in _METHODS:
        raise ValueError(f"Unknown resize method {method!r}; choose one of {sorted(_METHODS)}.")
    return _METHODS[method](size_in, size_out)


def resize(
    x: Float[Array, "B h w C"], shape: tuple[int, int], method: str
) -> Float[Array, "B H W C"]:
    """Resizes the two spatial axes of a feature map.

    Args:
      x: the map.
      shape: (H, W) to resize to.
      method: see `resize_matrix`.

    Returns:
      the map in x's dtype; x itself if the shape is the same.

    Raises:
      ValueError: unknown method.
    """
    h, w = x.shape[1:3]
    if (h, w) == tuple(shape):
        return x
    rows, columns = (resize_matrix(method, *sizes) for sizes in zip((h, w), shape, strict=True))
    return apply_matrices(x, rows, columns)


def weighted_mean(
    x: Float[Array, "B h w C"], weights: Float[Array, "B h w"] | None, shape: tuple[int, int]
) -> Float[Array, "B H W C"]:
    """Area-downsamples a map whose cells count by their weights; None is all alike.

    Args:
      x: the map.
      weights: in [0, 1].
      shape: (H, W) to resize to.

    Returns:
      The mean over each cell of the new shape; 0 where nothing in it counts.
    """
    if weights is None:
        return resize(x, shape, "area")
    share = resize(weights[..., None], shape, "area")
    total = resize(x * weights[..., None], shape, "area")
    # A cell that counts whole has the plain mean, to the bit.
    return total / jnp.where(share > 1 - 1e-6, 1.0, jnp.maximum(share, 1e-6))


def apply_matrices(
    x: Float[Array, "B h w C"],
    rows: Float[Array | np.ndarray, "H h"],
    columns: Float[Array | np.ndarray, "W w"],
) -> Float[Array, "B H W C"]:
    """One matrix product for each of the two spatial axes, in x's dtype."""
    rows, columns = jnp.asarray(rows, x.dtype), jnp.asarray(columns, x.dtype)
    # Token choices depend on these sums, so they must not run in bfloat16 on TPU.
    highest = jax.lax.Precision.HIGHEST
    x = jnp.einsum("Hh,bhwc->bHwc", rows, x, precision=highest)
    return jnp.einsum("Ww,bHwc->bHWc", columns, x, precision=highest)
