"""The Inception network of the Frechet inception distance.

Published FIDs use one particular network: the TensorFlow graph of 2015-12-05, whose pooling
differs from the paper's in places and whose resize samples at the pixels' corners (TensorFlow
1's `resize_bilinear`). The same weights in PyTorch names are `pt_inception-2015-12-05` of
pytorch-fid and `weights-inception-2015-12-05` of torch-fidelity. Batch normalisation is folded
into the convolutions when the weights are loaded (`inception_weights.py`).

Source: Szegedy et al. 2015 (arXiv 1512.00567); Heusel et al. 2017 (arXiv 1706.08500).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Num

IMAGE_SIZE = 299
CLASSES = 1008
FEATURES = ("64", "192", "768", "spatial", "2048", "logits_unbiased", "logits")
FEATURE_SIZES = {
    "64": 64,
    "192": 192,
    "768": 768,
    "spatial": 17 * 17 * 7,
    "2048": 2048,
    "logits_unbiased": CLASSES,
    "logits": CLASSES,
}


@functools.cache
def tf1_bilinear_matrix(size_in: int, size_out: int) -> Float[np.ndarray, "o i"]:
    """TensorFlow 1's `resize_bilinear` (align_corners=False) along one axis.

    Output i lies at i * in / out, without the half-pixel shift of later versions; the scale is
    rounded to float32 first, as there. No antialiasing. Each row sums to 1.
    """
    position = np.arange(size_out, dtype=np.float32) * np.float32(size_in / size_out)
    low = np.minimum(position.astype(np.int64), size_in - 1)
    high = np.minimum(low + 1, size_in - 1)
    fraction = (position - low.astype(np.float32)).astype(np.float32)
    matrix = np.zeros((size_out, size_in), np.float32)
    rows = np.arange(size_out)
    matrix[rows, low] += 1 - fraction
    matrix[rows, high] += fraction
    matrix.flags.writeable = False
    return matrix


def preprocess(images: Num[Array, "B H W 3"]) -> Float32[Array, "B 299 299 3"]:
    """uint8 -> [-1, 1) at 299 x 299."""
    height, width = images.shape[1:3]
    rows = tf1_bilinear_matrix(height, IMAGE_SIZE)
    columns = tf1_bilinear_matrix(width, IMAGE_SIZE)
    precision = jax.lax.Precision.HIGHEST
    x = images.astype(jnp.float32) - 128.0
    x = jnp.einsum("yh,bhwc->bywc", rows, x, precision=precision)
    x = jnp.einsum("xw,bywc->byxc", columns, x, precision=precision)
    return x / 128.0


class ConvRelu(nn.Module):
    """Convolution with bias (batch normalisation folded in), then ReLU."""

    features: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padding: tuple[int, int] = (0, 0)

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w features"]:
        shape = (*self.kernel, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.he_normal(), shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        x = jax.lax.conv_general_dilated(
            x,
            kernel,
            (self.stride, self.stride),
            [(n, n) for n in self.padding],
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=jax.lax.Precision.HIGHEST,
        )
        return nn.relu(x + bias)


def max_pool(
    x: Float[Array, "B H W C"], stride: int = 2, padding: int = 0
) -> Float[Array, "B h w C"]:
    """3x3 maximum."""
    return nn.max_pool(x, (3, 3), (stride, stride), [(padding, padding)] * 2)


def average_pool(x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
    """3x3 mean of the pixels inside the picture, as TensorFlow pools."""
    return nn.avg_pool(x, (3, 3), (1, 1), "SAME", count_include_pad=False)


def conv1(features: int, name: str, **kwargs) -> ConvRelu:
    return ConvRelu(features, name=name, **kwargs)


def conv3(features: int, name: str, stride: int = 1) -> ConvRelu:
    padding = (0, 0) if stride == 2 else (1, 1)
    return ConvRelu(features, (3, 3), stride, padding, name=name)


def row(features: int, length: int, name: str) -> ConvRelu:
    return ConvRelu(features, (1, length), padding=(0, length // 2), name=name)


def column(features: int, length: int, name: str) -> ConvRelu:
    return ConvRelu(features, (length, 1), padding=(length // 2, 0), name=name)


class BlockA(nn.Module):
    """35x35 block: 1x1, 5x5, double 3x3, pooled."""

    pool_features: int

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W D"]:
        one = conv1(64, "branch1x1")(x)
        five = conv1(48, "branch5x5_1")(x)
        five = ConvRelu(64, (5, 5), padding=(2, 2), name="branch5x5_2")(five)
        three = conv1(64, "branch3x3dbl_1")(x)
        three = conv3(96, "branch3x3dbl_2")(three)
        three = conv3(96, "branch3x3dbl_3")(three)
        pool = conv1(self.pool_features, "branch_pool")(average_pool(x))
        return jnp.concatenate([one, five, three, pool], -1)


class BlockB(nn.Module):
    """35x35 -> 17x17."""

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w D"]:
        three = conv3(384, "branch3x3", stride=2)(x)
        double = conv1(64, "branch3x3dbl_1")(x)
        double = conv3(96, "branch3x3dbl_2")(double)
        double = conv3(96, "branch3x3dbl_3", stride=2)(double)
        return jnp.concatenate([three, double, max_pool(x)], -1)


class BlockC(nn.Module):
    """17x17 block: 1x1, factored 7x7, double 7x7, pooled; also returns the 1x1 branch."""

    width: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "B H W C"]
    ) -> tuple[Float[Array, "B H W D"], Float[Array, "B H W E"]]:
        c = self.width
        one = conv1(192, "branch1x1")(x)
        seven = conv1(c, "branch7x7_1")(x)
        seven = row(c, 7, "branch7x7_2")(seven)
        seven = column(192, 7, "branch7x7_3")(seven)
        double = conv1(c, "branch7x7dbl_1")(x)
        double = column(c, 7, "branch7x7dbl_2")(double)
        double = row(c, 7, "branch7x7dbl_3")(double)
        double = column(c, 7, "branch7x7dbl_4")(double)
        double = row(192, 7, "branch7x7dbl_5")(double)
        pool = conv1(192, "branch_pool")(average_pool(x))
        return jnp.concatenate([one, seven, double, pool], -1), one


class BlockD(nn.Module):
    """17x17 -> 8x8."""

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w D"]:
        three = conv1(192, "branch3x3_1")(x)
        three = conv3(320, "branch3x3_2", stride=2)(three)
        seven = conv1(192, "branch7x7x3_1")(x)
        seven = row(192, 7, "branch7x7x3_2")(seven)
        seven = column(192, 7, "branch7x7x3_3")(seven)
        seven = conv3(192, "branch7x7x3_4", stride=2)(seven)
        return jnp.concatenate([three, seven, max_pool(x)], -1)


class BlockE(nn.Module):
    """8x8 block. The graph's last one pools by maximum where the paper has a mean."""

    pool_by_maximum: bool

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W D"]:
        one = conv1(320, "branch1x1")(x)
        three = conv1(384, "branch3x3_1")(x)
        three = [row(384, 3, "branch3x3_2a")(three), column(384, 3, "branch3x3_2b")(three)]
        double = conv3(384, "branch3x3dbl_2")(conv1(448, "branch3x3dbl_1")(x))
        double = [row(384, 3, "branch3x3dbl_3a")(double), column(384, 3, "branch3x3dbl_3b")(double)]
        pooled = max_pool(x, 1, 1) if self.pool_by_maximum else average_pool(x)
        pool = conv1(192, "branch_pool")(pooled)
        return jnp.concatenate([one, *three, *double, pool], -1)


class Inception(nn.Module):
    """FID Inception; its parameter names are those of the PyTorch files."""

    @nn.compact
    def __call__(
        self, images: Num[Array, "B H W 3"], features: Sequence[str] = ("2048",)
    ) -> dict[str, Float32[Array, "B _"]]:
        """Features of images.

        Args:
          images: uint8 [B, H, W, 3], any size.
          features: which of FEATURES to compute. '64', '192', '768', '2048': spatial means after
            the two first poolings, the last 17x17 block and the last 8x8 block. 'spatial': the
            first seven channels of the 1x1 branch of `Mixed_6d` (TensorFlow's `mixed_6/conv`),
            flattened from [17, 17, 7], from which sFID is computed (ADM's evaluator).
            'logits_unbiased': without the last layer's bias, the input of the inception score.

        Returns:
          float32 [B, size] for each of `features`.
        """
        if unknown := sorted(set(features) - set(FEATURES)):
            raise ValueError(f"Unknown features {unknown}; there are {', '.join(FEATURES)}.")
        found: dict[str, jax.Array] = {}
        mean = functools.partial(jnp.mean, axis=(1, 2))
        x = preprocess(images)
        x = ConvRelu(32, (3, 3), 2, name="Conv2d_1a_3x3")(x)
        x = ConvRelu(32, (3, 3), name="Conv2d_2a_3x3")(x)
        x = conv3(64, "Conv2d_2b_3x3")(x)
        x = max_pool(x)  # [B, 73, 73, 64]
        found["64"] = mean(x)
        x = conv1(80, "Conv2d_3b_1x1")(x)
        x = ConvRelu(192, (3, 3), name="Conv2d_4a_3x3")(x)
        x = max_pool(x)  # [B, 35, 35, 192]
        found["192"] = mean(x)
        x = BlockA(32, name="Mixed_5b")(x)
        x = BlockA(64, name="Mixed_5c")(x)
        x = BlockA(64, name="Mixed_5d")(x)
        x = BlockB(name="Mixed_6a")(x)  # [B, 17, 17, 768]
        x, _ = BlockC(128, name="Mixed_6b")(x)
        x, _ = BlockC(160, name="Mixed_6c")(x)
        x, one = BlockC(160, name="Mixed_6d")(x)
        found["spatial"] = one[..., :7].reshape(one.shape[0], -1)
        x, _ = BlockC(192, name="Mixed_6e")(x)
        found["768"] = mean(x)
        x = BlockD(name="Mixed_7a")(x)  # [B, 8, 8, 1280]
        x = BlockE(False, name="Mixed_7b")(x)
        x = BlockE(True, name="Mixed_7c")(x)
        found["2048"] = pooled = mean(x)
        kernel = self.param("fc_kernel", nn.initializers.lecun_normal(), (2048, CLASSES))
        bias = self.param("fc_bias", nn.initializers.zeros, (CLASSES,))
        logits = jnp.dot(pooled, kernel, precision=jax.lax.Precision.HIGHEST)
        found["logits_unbiased"] = logits
        found["logits"] = logits + bias
        return {name: found[name] for name in features}
