"""Scores of a reconstruction against its picture.

Peak signal-to-noise ratio and structural similarity (Wang et al. 2004), and how edges and fine
detail are kept, in the manner of VTBench (arXiv 2505.13439): tokenizers with equal PSNR differ
there.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float32, Num

WINDOW = 11
SIGMA = 1.5
_HIGHEST = jax.lax.Precision.HIGHEST
#: uint8, or floating point in [-1, 1].
Images = Num[Array | np.ndarray, "B H W c"]


@struct.dataclass
class ImageScores:
    """Scores of reconstructions.

    Attributes:
      psnr: decibels; infinite for equal pictures.
      ssim: structural similarity, at most 1.
      edge_error: mean absolute difference of Sobel magnitudes over the picture's mean; 0 is best.
      high_frequency_error: norm of the difference above half the Nyquist frequency over the
        picture's own; 0 is best, 1 is no better than nothing.
      high_frequency_ratio: energy above half the Nyquist frequency over the picture's own; below
        1 the reconstruction is smoother than the picture, above 1 noisier.
    """

    psnr: Float32[Array, " B"]
    ssim: Float32[Array, " B"]
    edge_error: Float32[Array, " B"]
    high_frequency_error: Float32[Array, " B"]
    high_frequency_ratio: Float32[Array, " B"]


@jax.jit
def image_scores(images: Images, reconstructions: Images) -> ImageScores:
    """All scores at once.

    Args:
      images, reconstructions: H and W at least 11.
    """
    edge = edge_error(images, reconstructions)
    error, ratio = high_frequency(images, reconstructions)
    return ImageScores(
        psnr(images, reconstructions), ssim(images, reconstructions), edge, error, ratio
    )


def unit_range(
    images: Num[Array | np.ndarray, " *shape"],
) -> Float32[Array | np.ndarray, " *shape"]:
    """uint8, or floating point in [-1, 1], to float32 in [0, 1]."""
    if images.dtype == jnp.uint8:
        return images.astype(jnp.float32) / 255.0
    return (images.astype(jnp.float32) + 1.0) / 2.0


def psnr(images: Images, reconstructions: Images) -> Float32[Array, " B"]:
    """Peak signal-to-noise ratio in decibels; the peak is the whole range."""
    _check(images, reconstructions)
    difference = unit_range(images) - unit_range(reconstructions)
    return -10.0 * jnp.log10(jnp.mean(difference**2, axis=(1, 2, 3)))


def ssim(images: Images, reconstructions: Images) -> Float32[Array, " B"]:
    """Structural similarity: the mean over windows inside the picture, and channels.

    Gaussian window of 11 x 11 pixels with sigma 1.5, K1 = 0.01, K2 = 0.03 (Wang et al. 2004).
    """
    _check(images, reconstructions)
    height, width = images.shape[1:3]
    if min(height, width) < WINDOW:
        raise ValueError(f"SSIM needs pictures of at least {WINDOW} pixels, not {height}x{width}.")
    # Variances lose fewer digits around middle grey.
    x, y = unit_range(images) - 0.5, unit_range(reconstructions) - 0.5
    rows, columns = _window_matrix(height), _window_matrix(width)

    def blur(a: jax.Array) -> jax.Array:
        a = jnp.einsum("ih,bhwc->biwc", rows, a, precision=_HIGHEST)
        return jnp.einsum("jw,biwc->bijc", columns, a, precision=_HIGHEST)

    mean_x, mean_y = blur(x), blur(y)
    variance_x = blur(x * x) - mean_x**2
    variance_y = blur(y * y) - mean_y**2
    covariance = blur(x * y) - mean_x * mean_y
    mean_x, mean_y = mean_x + 0.5, mean_y + 0.5
    c1, c2 = 0.01**2, 0.03**2
    similarity = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    similarity /= (mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2)
    return jnp.mean(similarity, axis=(1, 2, 3))


def edge_error(images: Images, reconstructions: Images) -> Float32[Array, " B"]:
    """Relative error of the Sobel magnitude of the mean of the channels."""
    _check(images, reconstructions)
    x, y = _sobel(unit_range(images)), _sobel(unit_range(reconstructions))
    return jnp.mean(jnp.abs(x - y), axis=(1, 2)) / jnp.maximum(jnp.mean(x, axis=(1, 2)), 1e-8)


def high_frequency(
    images: Images,
    reconstructions: Images,
    cutoff: float = 0.5,
) -> tuple[Float32[Array, " B"], Float32[Array, " B"]]:
    """Error and energy of what lies above `cutoff` times the Nyquist frequency on either axis.

    Returns:
      relative error and energy ratio; see ImageScores.
    """
    _check(images, reconstructions)
    x, y = unit_range(images), unit_range(reconstructions)
    height, width = x.shape[1:3]
    vertical = np.abs(np.fft.fftfreq(height))[:, None] * 2
    horizontal = np.abs(np.fft.rfftfreq(width))[None] * 2
    high = ((vertical > cutoff) | (horizontal > cutoff)).astype(np.float32)
    # A column of the half spectrum stands for its mirror image too.
    mirrored = (horizontal > 0) & (horizontal < 1)
    weight = (high * np.where(mirrored, 2.0, 1.0)).astype(np.float32)[..., None]
    spectrum_x, spectrum_y = jnp.fft.rfft2(x, axes=(1, 2)), jnp.fft.rfft2(y, axes=(1, 2))

    def energy(spectrum: jax.Array) -> jax.Array:
        return jnp.sum(weight * jnp.abs(spectrum) ** 2, axis=(1, 2, 3))

    own = jnp.maximum(energy(spectrum_x), 1e-8)
    return jnp.sqrt(energy(spectrum_x - spectrum_y) / own), energy(spectrum_y) / own


@functools.cache
def _window_matrix(size: int) -> np.ndarray:
    """Gaussian window at every position inside the picture, float32 [size - 10, size]."""
    offsets = np.arange(WINDOW) - WINDOW // 2
    weights = np.exp(-(offsets**2) / (2 * SIGMA**2))
    weights /= weights.sum()
    matrix = np.zeros((size - WINDOW + 1, size))
    for i in range(len(matrix)):
        matrix[i, i : i + WINDOW] = weights
    return matrix.astype(np.float32)


def _sobel(images: jax.Array) -> jax.Array:
    grey = images.mean(-1)  # [B, H, W]
    smooth_rows = grey[:, :-2] + 2 * grey[:, 1:-1] + grey[:, 2:]
    smooth_columns = grey[:, :, :-2] + 2 * grey[:, :, 1:-1] + grey[:, :, 2:]
    horizontal = smooth_rows[:, :, 2:] - smooth_rows[:, :, :-2]
    vertical = smooth_columns[:, 2:] - smooth_columns[:, :-2]
    return jnp.sqrt(horizontal**2 + vertical**2)


def _check(images: jax.Array, reconstructions: jax.Array) -> None:
    if images.shape != reconstructions.shape:
        raise ValueError(
            f"Reconstructions {list(reconstructions.shape)} are compared with pictures "
            f"{list(images.shape)}; both must be the same [B, H, W, C]."
        )
