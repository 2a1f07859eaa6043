"""The convolutional autoencoder of VQGAN and latent diffusion (arXiv 2012.09841, 2112.10752)."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from var_jax.tokenizer.layers import Dropout, GroupNorm, conv

_ACTIVATION_AXES = ("batch", "height", "width", "channels")


class ResidualBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), with a 1x1 shortcut where the width changes.

    Attributes:
      features: output channels.
      norm_groups: groups of the normalisation.
      dropout: rate before the second convolution.
      dtype: computing type.
      precision: of the products.
    """

    features: int
    norm_groups: int = 32
    dropout: float = 0.0
    dtype: jnp.dtype = jnp.float32
    precision: jax.lax.PrecisionLike = None

    @nn.compact
    def __call__(self, x: jax.Array, keys: jax.Array | None = None) -> jax.Array:
        """float [B, H, W, C] -> [B, H, W, features]; keys: see `Encoder`."""
        settings = {"dtype": self.dtype, "precision": self.precision}
        h = GroupNorm(self.norm_groups, self.dtype, name="norm1")(x)
        h = conv(self.features, **settings, name="conv1")(nn.silu(h))
        h = GroupNorm(self.norm_groups, self.dtype, name="norm2")(h)
        h = Dropout(self.dropout, name="dropout")(nn.silu(h), keys)
        h = conv(self.features, **settings, name="conv2")(h)
        if x.shape[-1] != self.features:
            x = conv(self.features, 1, **settings, name="shortcut")(x)
        return x + h


class AttentionBlock(nn.Module):
    """x + single-head attention over all positions of norm(x).

    Attributes:
      norm_groups: groups of the normalisation.
      dtype: computing type; the softmax is float32.
      precision: of the products.
    """

    norm_groups: int = 32
    dtype: jnp.dtype = jnp.float32
    precision: jax.lax.PrecisionLike = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """float [B, H, W, C] -> the same shape."""
        batch, height, width, channels = x.shape
        settings = {"dtype": self.dtype, "precision": self.precision}
        einsum = functools.partial(jnp.einsum, precision=self.precision)
        h = GroupNorm(self.norm_groups, self.dtype, name="norm")(x)
        qkv = conv(3 * channels, 1, **settings, name="qkv")(h)
        q, k, v = jnp.split(qkv.reshape(batch, height * width, 3 * channels), 3, -1)
        logits = einsum("bqc,bkc->bqk", q, k, preferred_element_type=jnp.float32)
        weights = nn.softmax(logits * channels**-0.5).astype(self.dtype)
        h = einsum("bqk,bkc->bqc", weights, v).reshape(x.shape)
        return x + conv(channels, 1, **settings, name="proj_out")(h)


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
    precision: jax.lax.PrecisionLike = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """float [B, H, W, C] -> [B, H / 2, W / 2, C]."""
        settings = {"dtype": self.dtype, "precision": self.precision}
        return conv(x.shape[-1], stride=2, padding=[(0, 1), (0, 1)], **settings, name="conv")(x)


class Upsample(nn.Module):
    """Nearest-neighbour doubling followed by a 3x3 convolution."""

    dtype: jnp.dtype = jnp.float32
    precision: jax.lax.PrecisionLike = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """float [B, H, W, C] -> [B, 2 H, 2 W, C]."""
        batch, height, width, channels = x.shape
        x = jnp.broadcast_to(x[:, :, None, :, None], (batch, height, 2, width, 2, channels))
        x = x.reshape(batch, 2 * height, 2 * width, channels)
        return conv(channels, dtype=self.dtype, precision=self.precision, name="conv")(x)


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
      precision: of the products.
    """

    features: int
    num_blocks: int
    attention: bool = False
    resample: str | None = None
    norm_groups: int = 32
    dropout: float = 0.0
    dtype: jnp.dtype = jnp.float32
    remat: bool = False
    precision: jax.lax.PrecisionLike = None

    @nn.compact
    def __call__(self, x: jax.Array, keys: jax.Array | None = None) -> jax.Array:
        """float [B, H, W, C] -> [B, H', W', features], H' = H, H / 2 or 2 H; keys: see
        `Encoder`."""
        block = nn.remat(ResidualBlock) if self.remat else ResidualBlock
        arithmetic = (self.dtype, self.precision)
        settings = (self.features, self.norm_groups, self.dropout, *arithmetic)
        for i in range(self.num_blocks):
            x = block(*settings, name=f"block_{i}")(x, keys)
            if self.attention:
                x = AttentionBlock(self.norm_groups, *arithmetic, name=f"attn_{i}")(x)
        if self.resample == "down":
            x = Downsample(*arithmetic, name="downsample")(x)
        elif self.resample == "up":
            x = Upsample(*arithmetic, name="upsample")(x)
        return nn.with_logical_constraint(x, _ACTIVATION_AXES)


class Middle(nn.Module):
    """Residual block, attention (optional), residual block, at the lowest resolution."""

    attention: bool = True
    norm_groups: int = 32
    dropout: float = 0.0
    dtype: jnp.dtype = jnp.float32
    precision: jax.lax.PrecisionLike = None

    @nn.compact
    def __call__(self, x: jax.Array, keys: jax.Array | None = None) -> jax.Array:
        """float [B, h, w, C] -> the same shape; keys: see `Encoder`."""
        arithmetic = (self.dtype, self.precision)
        settings = (x.shape[-1], self.norm_groups, self.dropout, *arithmetic)
        x = ResidualBlock(*settings, name="block_1")(x, keys)
        if self.attention:
            x = AttentionBlock(self.norm_groups, *arithmetic, name="attn_1")(x)
        return ResidualBlock(*settings, name="block_2")(x, keys)


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
      precision: of the products; None is the fastest of the backend, for float32 on a TPU one pass
        in bfloat16.
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
    precision: jax.lax.PrecisionLike = None

    @nn.compact
    def __call__(self, x: jax.Array, keys: jax.Array | None = None) -> jax.Array:
        """Images float [B, H, W, c] -> float [B, h, w, out_channels].

        Args:
          x: the images.
          keys: a PRNG key for each example [B], for dropout; None in evaluation.
        """
        settings = {"dtype": self.dtype, "precision": self.precision}
        h = space_to_depth(x, self.patch_size)
        h = conv(self.channels, axes=(None, "conv_out"), **settings, name="conv_in")(h)
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
                precision=self.precision,
                name=f"down_{i}",
            )(h, keys)
        h = Middle(self.attention, self.norm_groups, self.dropout, **settings, name="mid")(h, keys)
        h = nn.silu(GroupNorm(self.norm_groups, self.dtype, name="norm_out")(h))
        return conv(self.out_channels, axes=("conv_in", None), **settings, name="conv_out")(h)


class Decoder(nn.Module):
    """Feature maps to images; the mirror image of Encoder, with one more block a stage.

    Attributes:
      out_channels: image channels.
      Others as in Encoder, but for the precision, which is the backend's fastest. Stages are named
        up_i with i counted from full resolution.
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
        # The sums of pixels are the result: float32 whatever the computing type.
        pixels = self.out_channels * self.patch_size**2
        self.conv_out = conv(pixels, axes=("conv_in", None), dtype=jnp.float32)

    def trunk(self, z: jax.Array, keys: jax.Array | None = None) -> jax.Array:
        """Features float [B, h, w, C] -> what the last convolution reads, [B, H / p, W / p,
        channels]; keys: see `Encoder`."""
        h = self.mid(self.conv_in(z), keys)
        for stage in reversed(self.up):
            h = stage(h, keys)
        return nn.silu(self.norm_out(h))

    def pixels(self, h: jax.Array) -> jax.Array:
        """The last convolution: [B, H / p, W / p, channels] -> images float32 [B, H, W,
        out_channels], p = patch_size."""
        return depth_to_space(self.conv_out(h), self.patch_size)

    def __call__(self, z: jax.Array, keys: jax.Array | None = None) -> jax.Array:
        """Features float [B, h, w, C] -> images float32 [B, H, W, out_channels], not clipped;
        keys: see `Encoder`."""
        return self.pixels(self.trunk(z, keys))
