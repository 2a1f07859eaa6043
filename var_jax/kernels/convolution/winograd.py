"""3x3 convolution by minimal filtering over rows, F(4, 3) (Lavin and Gray, arXiv 1509.09308).

Four rows of the output are made from six products of one row of kernels each, where the direct
sum takes twelve: half the multiplications, for a few additions per element.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

#: Output rows per tile; the image's height must be a multiple of it.
ROWS = 4
# Interpolation at 0, 1, -1, 2, -2 and infinity: six kernel rows from three, six combinations of
# the six input rows that a tile reads, and its four output rows from the six products.
_KERNEL = np.array(
    [
        [1 / 4, 0, 0],
        [-1 / 6, -1 / 6, -1 / 6],
        [-1 / 6, 1 / 6, -1 / 6],
        [1 / 24, 1 / 12, 1 / 6],
        [1 / 24, -1 / 12, 1 / 6],
        [0, 0, 1],
    ],
    np.float32,
)
_INPUT = (
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)
_OUTPUT = (
    (1, 1, 1, 1, 1, 0),
    (0, 1, -1, 2, -2, 0),
    (0, 1, 1, 4, 4, 0),
    (0, 1, -1, 8, -8, 1),
)


def _combine(weights: Sequence[int], arrays: Sequence[jax.Array]) -> jax.Array:
    """The sum of weights times arrays, without the terms that are zero."""
    terms = (w * x for w, x in zip(weights, arrays, strict=True) if w)
    return functools.reduce(operator.add, terms)


_direct = functools.partial(
    lax.conv_general_dilated,
    window_strides=(1, 1),
    padding="SAME",
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
)


@jax.custom_vjp
def convolution(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """3x3 convolution of stride 1, zero-padded to the same size.

    Its error is about three times that of XLA's direct sum. The gradient by x is made the same
    way, that by the kernel directly.

    Args:
      x: f32 [B, H, W, C], H a multiple of ROWS.
      kernel: f32 [3, 3, C, D].

    Returns:
      f32 [B, H, W, D].
    """
    batch, height, width, channels = x.shape
    tiles = x.reshape(batch, height // ROWS, ROWS, width, channels)
    outside = jnp.zeros_like(tiles[:, :1, 0])
    rows = [
        jnp.concatenate([outside, tiles[:, :-1, -1]], 1),
        *(tiles[:, :, i] for i in range(ROWS)),
        jnp.concatenate([tiles[:, 1:, 0], outside], 1),
    ]
    kernels = jnp.einsum("kr,rsio->ksio", _KERNEL, kernel)[:, None]
    products = [_direct(_combine(w, rows), k) for w, k in zip(_INPUT, kernels, strict=True)]
    y = jnp.stack([_combine(weights, products) for weights in _OUTPUT], 2)
    return y.reshape(batch, height, width, kernel.shape[-1])


def _forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return convolution(x, kernel), (x, kernel)


def _backward(
    residuals: tuple[jax.Array, jax.Array], cotangent: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = residuals
    mirrored = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
    (by_kernel,) = jax.linear_transpose(functools.partial(_direct, x), kernel)(cotangent)
    return convolution(cotangent, mirrored), by_kernel


convolution.defvjp(_forward, _backward)
