"""Convolution, normalisation and dropout of the tokenizer's networks."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from var_jax.kernels.convolution import conv_general_dilated


def conv(
    features: int,
    kernel_size: int = 3,
    stride: int = 1,
    padding: int | Sequence[tuple[int, int]] | None = None,
    axes: tuple[str | None, str | None] = ("conv_in", "conv_out"),
    **kwargs,
) -> nn.Conv:
    """A convolution with annotated parameters and, by default, the padding that keeps the size.

    Args:
      features: output channels.
      kernel_size: side of the square kernel.
      stride: step of both spatial axes.
      padding: as in nn.Conv; None is kernel_size // 2 on each side.
      axes: logical names of the input and the output channels.
      **kwargs: further fields of nn.Conv.
    """
    return nn.Conv(
        features,
        (kernel_size, kernel_size),
        strides=stride,
        padding=kernel_size // 2 if padding is None else padding,
        kernel_init=nn.with_logical_partitioning(
            nn.initializers.lecun_uniform(), (None, None, *axes)
        ),
        bias_init=nn.with_logical_partitioning(nn.initializers.zeros, (axes[1],)),
        conv_general_dilated=conv_general_dilated,
        **kwargs,
    )


class GroupNorm(nn.Module):
    """Group normalisation with float32 statistics (eps 1e-6, learned scale and bias).

    Not flax's, which repeats a group's statistics for its channels: XLA on CPUs computes them anew
    for every element.

    Attributes:
      num_groups: must divide the channels.
      dtype: of the output.
    """

    num_groups: int
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        """The normalised maps."""
        channels = x.shape[-1]
        if channels % self.num_groups:
            raise ValueError(
                f"{self.num_groups} normalisation groups do not divide {channels} channels; set "
                "norm_groups to a common divisor of all widths, or the widths to multiples of it."
            )

        def affine(name, init):
            init = nn.with_logical_partitioning(init, (None,))
            return self.param(name, init, (channels,), jnp.float32)

        scale, bias = affine("scale", nn.initializers.ones), affine("bias", nn.initializers.zeros)
        x = x.astype(jnp.float32)

        # [groups, C]: 1 where a channel is the group's; a product is computed once.
        members = np.repeat(
            np.eye(self.num_groups, dtype=np.float32), channels // self.num_groups, axis=1
        )
        dot = functools.partial(jnp.dot, precision=jax.lax.Precision.HIGHEST)

        def group_mean(x):
            # [B, H, W, C] -> [B, groups]. Pixels first, which leaves the channels contiguous. No
            # product: on CPUs its rounding would hang on the size of the batch.
            return x.mean((1, 2)).reshape(x.shape[0], self.num_groups, -1).mean(-1)

        def to_channels(groups, weights=members):
            # [B, groups] -> [B, 1, 1, C].
            return dot(groups, weights)[:, None, None]

        mean = group_mean(x)
        inverse = jax.lax.rsqrt(group_mean(jnp.square(x - to_channels(mean))) + 1e-6)
        # One multiplication and one addition per element: fold the affine map into the statistics.
        factor = to_channels(inverse, members * scale)
        shift = bias - to_channels(mean * inverse, members * scale)
        return (x * factor + shift).astype(self.dtype)


class Dropout(nn.Module):
    """Sets entries to 0 with probability `rate`, each example's by its own key.

    Attributes:
      rate: 0 is off.
    """

    rate: float

    @nn.compact
    def __call__(
        self, x: Float[Array, " B *shape"], keys: Key[Array, " B"] | None = None
    ) -> Float[Array, " B *shape"]:
        """The entries that are left, scaled; keys: see `Encoder`."""
        if keys is None or not self.rate:
            return x
        site = zlib.crc32("/".join(self.path).encode())

        def keep(key):
            return jax.random.bernoulli(jax.random.fold_in(key, site), 1 - self.rate, x.shape[1:])

        return jnp.where(jax.vmap(keep)(keys), x / (1 - self.rate), 0)
