"""2-D convolution, for the field `conv_general_dilated` of flax.linen.Conv.

On TPUs and GPUs XLA's direct sum is best. On CPUs minimal filtering takes less time for 3x3
convolutions of wide feature maps, which are nearly all that an autoencoder computes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from var_jax import kernels
from var_jax.kernels.convolution import winograd

#: With fewer channels or fewer pixels in an example the direct sum takes about as long, or less.
MIN_CHANNELS = 64
MIN_PIXELS = 256
_CHANNELS_LAST = lax.ConvDimensionNumbers((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))


def best_implementation(platform: str, shape: Sequence[int], kernel_shape: Sequence[int]) -> str:
    """The implementation that None stands for, of a convolution that each of them computes.

    It does not hang on the batch: the implementations round differently, and a picture has the
    same numbers, and so the same tokens, in any batch.

    Args:
      platform: "cpu", "gpu", "cuda", "rocm" or "tpu".
      shape: of the feature maps, [B, H, W, C].
      kernel_shape: [3, 3, C, D].
    """
    pays = min(kernel_shape[2:]) >= MIN_CHANNELS and math.prod(shape[1:3]) >= MIN_PIXELS
    return "winograd" if platform == "cpu" and pays else "xla"


def conv_general_dilated(
    lhs: jax.Array,
    rhs: jax.Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: lax.ConvDimensionNumbers | tuple[str, str, str] | None = None,
    feature_group_count: int = 1,
    precision: lax.PrecisionLike = None,
    *,
    implementation: str | None = None,
) -> jax.Array:
    """`jax.lax.conv_general_dilated`, computed in the way that is fastest on the backend.

    Args:
      implementation: "xla", the direct sum, which computes all of them; "winograd", for float32
        3x3 kernels of stride 1 without groups or dilation, channels last, padded by 1 on each
        side, and a height that `winograd.ROWS` divides; or None for the best on the backend. A
        named one never falls back to another.
      Others: as there.

    Raises:
      ValueError: unknown implementation, or a convolution that it does not compute.
    """
    taken = (
        lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers) == _CHANNELS_LAST
        and rhs.shape[:2] == (3, 3)
        and tuple(window_strides) == (1, 1)
        and [tuple(sides) for sides in padding] == [(1, 1), (1, 1)]
        and {*(lhs_dilation or (1,)), *(rhs_dilation or (1,)), feature_group_count} == {1}
        and lhs.shape[1] % winograd.ROWS == 0
        and lhs.dtype == rhs.dtype == jnp.float32
    )
    name = implementation or "xla"
    if implementation is None and taken:
        name = best_implementation(kernels.platform(), lhs.shape, rhs.shape)
    if name == "winograd" and taken:
        return winograd.convolution(lhs, rhs)
    if name != "xla":
        raise ValueError(
            f"Convolution implementation {name!r} does not compute {lhs.dtype} {lhs.shape} with "
            f"kernel {rhs.shape}, strides {tuple(window_strides)} and padding {padding}; choose "
            "'xla' or None."
        )
    return lax.conv_general_dilated(
        lhs,
        rhs,
        window_strides,
        padding,
        lhs_dilation,
        rhs_dilation,
        dimension_numbers,
        feature_group_count,
        precision=precision,
    )
