"""The convolutional autoencoder of VQGAN and latent diffusion (arXiv 2012.09841, 2112.10752)."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from var_jax.kernels.convolution import conv_general_dilated

_ACTIVATION_AXES = ("batch", "height", "width", "channels")


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

    Attributes:
      num_groups: must divide the channels.
      dtype: of the output.
    """

    num_groups: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """float [B, H, W, C] -> the same shape."""
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

        # [groups, C]: 1 where a channel is the group's. On CPUs XLA computes jnp.repeat, and what
        # follows from it, anew for every element; a product it computes once.
        members = np.repeat(
            np.eye(self.num_groups, dtype=np.float32), channels // self.num_groups, axis=1
        )
        dot = functools.partial(jnp.dot, precision=jax.lax.Precision.HIGHEST)

        def group_mean(x):
            # [B, H, W, C] -> [B, groups]. Pixels first, which leaves the channels contiguous.
            return dot(x.mean((1, 2)), members.T / members.sum(1))

        def to_channels(groups, weights=members):
            # [B, groups] -> [B, 1, 1, C].
            return dot(groups, weights)[:, None, None]

        mean = group_mean(x)
        inverse = jax.lax.rsqrt(group_mean(jnp.square(x - to_channels(mean))) + 1e-6)
        # One multiplication and one addition an element: fold the affine map into the statistics.
        factor = to_channels(inverse, members * scale)
        shift = bias - to_channels(mean * inverse, members * scale)
        return (x * factor + shift).astype(self.dtype)


class ResidualBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), with a 1x1 shortcut where the width changes.

    Attributes:
      features: output channels.
      norm_groups: groups of the normalisation.
      dropout: rate before the second convolution.
      dtype: computing type.
    """

    features: int
    norm_groups: int = 32
    dropout: float = 0.0
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """float [B, H, W, C] -> [B, H, W, features]."""
        h = GroupNorm(self.norm_groups, self.dtype, name="norm1")(x)
        h = conv(self.features, dtype=self.dtype, name="conv1")(nn.silu(h))
        h = GroupNorm(self.norm_groups, self.dtype, name="norm2")(h)
        h = nn.Dropout(self.dropout, deterministic=not train)(nn.silu(h))
        h = conv(self.features, dtype=self.dtype, name="conv2")(h)
        if x.shape[-1] != self.features:
            x = conv(self.features, 1, dtype=self.dtype, name="shortcut")(x)
        return x + h


class AttentionBlock(nn.Module):
    """x + single-head attention over all positions of norm(x).

    Attributes:
      norm_groups: groups of the normalisation.
      dtype: computing type; the softmax is float32.
    """

    norm_groups: int = 32
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """float [B, H, W, C] -> the same shape."""
        batch, height, width, channels = x.shape
        h = GroupNorm(self.norm_groups, self.dtype, name="norm")(x)
        qkv = conv(3 * channels, 1, dtype=self.dtype, name="qkv")(h)
        q, k, v = jnp.split(qkv.reshape(batch, height * width, 3 * channels), 3, -1)
        logits = jnp.einsum("bqc,bkc->bqk", q, k, preferred_element_type=jnp.float32)
        weights = nn.softmax(logits * channels**-0.5).astype(self.dtype)
        h = jnp.einsum("bqk,bkc->bqc", weights, v).reshape(x.shape)
        return x + conv(channels, 1, dtype=self.dtype, name="proj_out")(h)


def space_to_depth(x: jax.Array, size: int) -> jax.Array:
    """[B, H, W, C] -> [B, H / size, W / size, size * size * C]: patches become channels."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // size, size, width // size, size, channels)
    x = x.transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, height // size, width // size, size * size * channels)


def depth_to_space(x: jax.Array, size: int) -> jax.Array:
    """[B, H, W, size * size * C] -> [B, size * H, size * W, C]; undoes space_to_depth."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height, width, size, size, channels // size**2)
    x = x.transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, size * height, size * width, channels // size**2)


class Downsample(nn.Module):
    """3x3 convolution of stride 2 after padding one row below and one column on the right."""

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """float [B, H, W, C] -> [B, H / 2, W / 2, C]."""
        pad = [(0, 1), (0, 1)]
        return conv(x.shape[-1], stride=2, padding=pad, dtype=self.dtype, name="conv")(x)


class Upsample(nn.Module):
    """Nearest-neighbour doubling followed by a 3x3 convolution."""

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """float [B, H, W, C] -> [B, 2 H, 2 W, C]."""
        batch, height, width, channels = x.shape
        x = jnp.broadcast_to(x[:, :, None, :, None], (batch, height, 2, width, 2, channels))
        x = x.reshape(batch, 2 * height, 2 * width, channels)
        return conv(channels, dtype=self.dtype, name="conv")(x)


class Stage(nn.Module):
    """Residual blocks of one resolution, then a change of resolution.

    Attributes:
      features: channels of all blocks.
      num_blocks: number of residual blocks.
      attention: an attention block after each residual block.
      resample: None, 'down' or 'up'.
      norm_groups: groups of the normalisation.
      dropout: rate inside the residual blocks.
      dtype: computing type.
      remat: recompute the residual blocks in the backward pass instead of storing them.
    """

    features: int
    num_blocks: int
    attention: bool = False
    resample: str | None = None
    norm_groups: int = 32
    dropout: float = 0.0
    dtype: jnp.dtype = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """float [B, H, W, C] -> [B, H', W', features], H' = H, H / 2 or 2 H."""
        block = nn.remat(ResidualBlock, static_argnums=(2,)) if self.remat else ResidualBlock
        for i in range(self.num_blocks):
            x = block(self.features, self.norm_groups, self.dropout, self.dtype, name=f"block_{i}")(
                x, train
            )
            if self.attention:
                x = AttentionBlock(self.norm_groups, self.dtype, name=f"attn_{i}")(x)
        if self.resample == "down":
            x = Downsample(self.dtype, name="downsample")(x)
        elif self.resample == "up":
            x = Upsample(self.dtype, name="upsample")(x)
        return nn.with_logical_constraint(x, _ACTIVATION_AXES)


class Middle(nn.Module):
    """Residual block, attention (optional), residual block, at the lowest resolution."""

    attention: bool = True
    norm_groups: int = 32
    dropout: float = 0.0
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """float [B, h, w, C] -> the same shape."""
        settings = (x.shape[-1], self.norm_groups, self.dropout, self.dtype)
        x = ResidualBlock(*settings, name="block_1")(x, train)
        if self.attention:
            x = AttentionBlock(self.norm_groups, self.dtype, name="attn_1")(x)
        return ResidualBlock(*settings, name="block_2")(x, train)


class Encoder(nn.Module):
    """Images to a feature map that is patch_size * 2 ** (len(multipliers) - 1) times smaller.

    Attributes:
      out_channels: C of the feature map.
      channels: width of the first stage.
      multipliers: width of each stage in units of `channels`, full resolution first.
      num_res_blocks: residual blocks a stage.
      attention: attention at the lowest resolution, in its stage and in the middle.
      patch_size: pixels of each patch_size x patch_size square are the first convolution's input
        channels; 1 is the official network, 2 or 4 one that computes far less.
      norm_groups: groups of the normalisation; must divide every width.
      dropout: rate inside the residual blocks.
      dtype: computing type; parameters are float32.
      remat: recompute residual blocks in the backward pass.
    """

    out_channels: int
    channels: int = 160
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2
    attention: bool = True
    patch_size: int = 1
    norm_groups: int = 32
    dropout: float = 0.0
    dtype: jnp.dtype = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Images float [B, H, W, c] -> float [B, h, w, out_channels]."""
        h = space_to_depth(x, self.patch_size)
        h = conv(self.channels, axes=(None, "conv_out"), dtype=self.dtype, name="conv_in")(h)
        last = len(self.multipliers) - 1
        for i, multiplier in enumerate(self.multipliers):
            h = Stage(
                self.channels * multiplier,
                self.num_res_blocks,
                attention=self.attention and i == last,
                resample="down" if i < last else None,
                norm_groups=self.norm_groups,
                dropout=self.dropout,
                dtype=self.dtype,
                remat=self.remat,
                name=f"down_{i}",
            )(h, train)
        h = Middle(self.attention, self.norm_groups, self.dropout, self.dtype, name="mid")(h, train)
        h = nn.silu(GroupNorm(self.norm_groups, self.dtype, name="norm_out")(h))
        return conv(self.out_channels, axes=("conv_in", None), dtype=self.dtype, name="conv_out")(h)


class Decoder(nn.Module):
    """Feature maps to images; the mirror image of Encoder, with one more block a stage.

    Attributes:
      out_channels: image channels.
      Others as in Encoder. Stages are named up_i with i counted from full resolution.
    """

    out_channels: int
    channels: int = 160
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2
    attention: bool = True
    patch_size: int = 1
    norm_groups: int = 32
    dropout: float = 0.0
    dtype: jnp.dtype = jnp.float32
    remat: bool = False

    def setup(self) -> None:
        last = len(self.multipliers) - 1
        width = self.channels * self.multipliers[-1]
        self.conv_in = conv(width, axes=(None, "conv_out"), dtype=self.dtype)
        self.mid = Middle(self.attention, self.norm_groups, self.dropout, self.dtype)
        self.up = [
            Stage(
                self.channels * multiplier,
                self.num_res_blocks + 1,
                attention=self.attention and i == last,
                resample="up" if i else None,
                norm_groups=self.norm_groups,
                dropout=self.dropout,
                dtype=self.dtype,
                remat=self.remat,
            )
            for i, multiplier in enumerate(self.multipliers)
        ]
        self.norm_out = GroupNorm(self.norm_groups, self.dtype)
        pixels = self.out_channels * self.patch_size**2
        self.conv_out = conv(pixels, axes=("conv_in", None), dtype=self.dtype)

    def trunk(self, z: jax.Array, train: bool = False) -> jax.Array:
        """Features float [B, h, w, C] -> what the last convolution reads, [B, H / p, W / p,
        channels]."""
        h = self.mid(self.conv_in(z), train)
        for stage in reversed(self.up):
            h = stage(h, train)
        return nn.silu(self.norm_out(h))

    def pixels(self, h: jax.Array) -> jax.Array:
        """The last convolution: [B, H / p, W / p, channels] -> images [B, H, W, out_channels],
        p = patch_size."""
        return depth_to_space(self.conv_out(h), self.patch_size)

    def __call__(self, z: jax.Array, train: bool = False) -> jax.Array:
        """Features float [B, h, w, C] -> images float [B, H, W, out_channels], not clipped."""
        return self.pixels(self.trunk(z, train))
