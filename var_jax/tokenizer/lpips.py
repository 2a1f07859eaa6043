"""LPIPS: learned perceptual distance of two images, on VGG-16 features.

Used as a training loss and as a score. Weights are read from torchvision's `vgg16` file and from
the five linear layers of the LPIPS release (version 0.1), without PyTorch.

Source: Zhang et al. 2018 (arXiv 1801.03924).
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32

from var_jax.kernels.convolution import conv_general_dilated

# Channels of the convolutions between poolings; the features are taken before each pooling.
STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
MIN_SIZE = 16  # four halvings
# ImageNet mean and standard deviation, for images in [-1, 1].
SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)
_EPSILON = 1e-10


class LPIPS(nn.Module):
    """Distance of images from VGG-16 features.

    Attributes:
      dtype: computation dtype of the convolutions; parameters and the distance are float32.
      precision: of the convolutions; HIGHEST, for scores, is float32 on a TPU too, where it takes
        six passes; DEFAULT, for training, takes one.
    """

    dtype: jax.typing.DTypeLike = jnp.float32
    precision: jax.lax.Precision | None = jax.lax.Precision.HIGHEST

    @nn.compact
    def __call__(
        self, x: Float[Array, "B H W 3"], y: Float[Array, "B H W 3"]
    ) -> Float32[Array, " B"]:
        """Distances of images in [-1, 1], H and W at least 16; 0 for equal ones."""
        if x.shape != y.shape or x.ndim != 4 or x.shape[-1] != 3 or min(x.shape[1:3]) < MIN_SIZE:
            raise ValueError(
                f"LPIPS compares two [B, H, W, 3] arrays of at least {MIN_SIZE} pixels per side, "
                f"not {x.shape} and {y.shape}."
            )
        batch = x.shape[0]
        images = jnp.concatenate([x, y]).astype(jnp.float32)
        h = ((images - jnp.array(SHIFT)) / jnp.array(SCALE)).astype(self.dtype)
        distance = jnp.zeros((batch,), jnp.float32)
        for stage, widths in enumerate(STAGES):
            if stage:
                h = nn.max_pool(h, (2, 2), (2, 2))
            for i, width in enumerate(widths):
                conv = nn.Conv(
                    width,
                    (3, 3),
                    padding=((1, 1), (1, 1)),
                    dtype=self.dtype,
                    precision=self.precision,
                    conv_general_dilated=conv_general_dilated,
                    name=f"conv{stage + 1}_{i + 1}",
                )
                h = nn.relu(conv(h))
            weight = self.param(f"lin{stage}", nn.initializers.ones, (widths[-1],), jnp.float32)
            unit = normalise(h.astype(jnp.float32))
            difference = (unit[:batch] - unit[batch:]) ** 2  # [B, h, w, C]
            distance += jnp.sum(jnp.mean(difference, axis=(1, 2)) * weight, -1)
        return distance


def normalise(features: Float[Array, "*shape C"]) -> Float[Array, "*shape C"]:
    """Unit vectors over the last axis, as LPIPS takes them; zero where every entry is."""
    squares = jnp.sum(features**2, -1, keepdims=True)
    # The square root's gradient at an all-zero pixel would be infinite.
    norm = jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1.0)), 0.0)
    return features / (norm + _EPSILON)
