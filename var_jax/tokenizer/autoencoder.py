"""The convolutional autoencoder of VQGAN and latent diffusion (arXiv 2012.09841, 2112.10752)."""

from __future__ import annotations

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from var_jax.tokenizer.layers import Dropout, GroupNorm, conv

_ACTIVATION_AXES = ("batch", "height", "width", "channels")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What all blocks of a network share.

    Attributes:
      norm_groups: groups of the normalisation; must divide every width.
      dropout: rate inside the residual blocks.
      dtype: computing type; parameters and the attention's softmax are float32.
      precision: of the products; None is the fastest of the backend, for float32 on a TPU one pass
        in bfloat16.
    """

    norm_groups: int = 32
    dropout: float = 0.0
    dtype: jax.typing.DTypeLike = jnp.float32
    precision: jax.lax.PrecisionLike = None

    def conv(self, features: int, *args, **kwargs) -> nn.Conv:
        """`layers.conv` in this arithmetic."""
        return conv(features, *args, dtype=self.dtype, precision=self.precision, **kwargs)

    def norm(self, name: str | None = None) -> GroupNorm:
        """The normalisation."""
        return GroupNorm(self.norm_groups, self.dtype, name=name)


class ResidualBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), with a 1x1 shortcut where the width changes.

    Attributes:
      features: output channels.
      settings: of the network.
    """

    features: int
    settings: Settings

    @nn.compact
    def __call__(
        self, x: Float[Array, "B H W c"], keys: Key[Array, " B"] | None = None
    ) -> Float[Array, "B H W features"]:
        """The block's output; keys: see `Encoder`."""
        h = self.settings.norm("norm1")(x)
        h = self.settings.conv(self.features, name="conv1")(nn.silu(h))
        h = self.settings.norm("norm2")(h)
        h = Dropout(self.settings.dropout, name="dropout")(nn.silu(h), keys)
        h = self.settings.conv(self.features, name="conv2")(h)
        if x.shape[-1] != self.features:
            x = self.settings.conv(self.features, 1, name="shortcut")(x)
        return x + h


class AttentionBlock(nn.Module):
    """x + single-head attention over all positions of norm(x).

    Attributes:
      settings: of the network.
    """

    settings: Settings

    @nn.compact
    def __call__(self, x: Float[Array, "B H W c"]) -> Float[Array, "B H W c"]:
        """The block's output."""
        batch, height, width, channels = x.shape
        einsum = functools.partial(jnp.einsum, precision=self.settings.precision)
        h = self.settings.norm("norm")(x)
        qkv = self.settings.conv(3 * channels, 1, name="qkv")(h)
        q, k, v = jnp.split(qkv.reshape(batch, height * width, 3 * channels), 3, -1)
        logits = einsum("bqc,bkc->bqk", q, k, preferred_element_type=jnp.float32)
        weights = nn.softmax(logits * channels**-0.5).astype(self.settings.dtype)
        h = einsum("bqk,bkc->bqc", weights, v).reshape(x.shape)
        return x + self.settings.conv(channels, 1, name="proj_out")(h)


def space_to_depth(x: Float[Array, "B H W c"], size: int) -> Float[Array, "B h w C"]:
    """Patches become channels: h = H / size, w = W / size, C = size * size * c."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // size, size, width // size, size, channels)
    x = x.transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, height // size, width // size, size * size * channels)


def depth_to_space(x: Float[Array, "B h w C"], size: int) -> Float[Array, "B H W c"]:
    """Undoes space_to_depth."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height, width, size, size, channels // size**2)
    x = x.transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, size * height, size * width, channels // size**2)


class Downsample(nn.Module):
    """3x3 convolution of stride 2 after padding one row below and one column on the right.

    Attributes:
      settings: of the network.
    """

    settings: Settings

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w C"]:
        """Half the size."""
        padding = [(0, 1), (0, 1)]
        return self.settings.conv(x.shape[-1], stride=2, padding=padding, name="conv")(x)


class Upsample(nn.Module):
    """Nearest-neighbour doubling followed by a 3x3 convolution.

    Attributes:
      settings: of the network.
    """

    settings: Settings

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B 2*H 2*W C"]:
        """Twice the size."""
        batch, height, width, channels = x.shape
        x = jnp.broadcast_to(x[:, :, None, :, None], (batch, height, 2, width, 2, channels))
        x = x.reshape(batch, 2 * height, 2 * width, channels)
        return self.settings.conv(channels, name="conv")(x)


class Stage(nn.Module):
    """Residual blocks of one resolution, then a change of resolution.

    Attributes:
      features: channels of all blocks.
      num_blocks: number of residual blocks.
      settings: of the network.
      attention: an attention block after each residual block.
      resample: None, 'down' or 'up'.
      remat: recompute the residual blocks in the backward pass instead of storing them.
    """

    features: int
    num_blocks: int
    settings: Settings
    attention: bool = False
    resample: str | None = None
    remat: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "B H W c"], keys: Key[Array, " B"] | None = None
    ) -> Float[Array, "B h w features"]:
        """h, w = H, W, half of them or twice; keys: see `Encoder`."""
        block = nn.remat(ResidualBlock) if self.remat else ResidualBlock
        for i in range(self.num_blocks):
            x = block(self.features, self.settings, name=f"block_{i}")(x, keys)
            if self.attention:
                x = AttentionBlock(self.settings, name=f"attn_{i}")(x)
        if self.resample == "down":
            x = Downsample(self.settings, name="downsample")(x)
        elif self.resample == "up":
            x = Upsample(self.settings, name="upsample")(x)
        return nn.with_logical_constraint(x, _ACTIVATION_AXES)


class Middle(nn.Module):
    """Residual block, attention (optional), residual block, at the lowest resolution.

    Attributes:
      settings: of the network.
      attention: whether it has attention.
    """

    settings: Settings
    attention: bool = True

    @nn.compact
    def __call__(
        self, x: Float[Array, "B h w C"], keys: Key[Array, " B"] | None = None
    ) -> Float[Array, "B h w C"]:
        """The blocks' output; keys: see `Encoder`."""
        x = ResidualBlock(x.shape[-1], self.settings, name="block_1")(x, keys)
        if self.attention:
            x = AttentionBlock(self.settings, name="attn_1")(x)
        return ResidualBlock(x.shape[-1], self.settings, name="block_2")(x, keys)


class _Network(nn.Module):
    """What the encoder and the decoder of one autoencoder have in common.

    Attributes:
      out_channels: of the feature map or the image.
      channels: width of the stage at full resolution.
      multipliers: width of each stage in units of `channels`, full resolution first.
      num_res_blocks: residual blocks of each stage of the encoder; the decoder has one more.
      attention: attention at the lowest resolution, in its stage and in the middle.
      stage_attention: with attention, in its stage too; else in the middle alone.
      patch_size: pixels of each patch_size x patch_size square are channels at full resolution;
        1 is the official network, 2 or 4 one that computes far less.
      norm_groups, dropout, dtype: see `Settings`.
      remat: recompute residual blocks in the backward pass.
    """

    out_channels: int
    channels: int = 160
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2
    attention: bool = True
    stage_attention: bool = True
    patch_size: int = 1
    norm_groups: int = 32
    dropout: float = 0.0
    dtype: jax.typing.DTypeLike = jnp.float32
    remat: bool = False

    def _settings(self, precision: jax.lax.PrecisionLike = None) -> Settings:
        return Settings(self.norm_groups, self.dropout, self.dtype, precision)

    def _stage(self, i: int, num_blocks: int, settings: Settings, **kwargs) -> Stage:
        """Stage i, counted from full resolution."""
        lowest = i == len(self.multipliers) - 1
        return Stage(
            self.channels * self.multipliers[i],
            num_blocks,
            settings,
            attention=self.attention and self.stage_attention and lowest,
            remat=self.remat,
            **kwargs,
        )


class Encoder(_Network):
    """Images to a feature map that is patch_size * 2 ** (len(multipliers) - 1) times smaller.

    Attributes:
      precision: see `Settings`.
      Others as in `_Network`.
    """

    precision: jax.lax.PrecisionLike = None

    @nn.compact
    def __call__(
        self, images: Float[Array, "B H W c"], keys: Key[Array, " B"] | None = None
    ) -> Float[Array, "B h w out_channels"]:
        """Features of images.

        Args:
          images: the images.
          keys: a PRNG key for each example, for dropout; None in evaluation.
        """
        settings = self._settings(self.precision)
        h = space_to_depth(images, self.patch_size)
        h = settings.conv(self.channels, axes=(None, "conv_out"), name="conv_in")(h)
        last = len(self.multipliers) - 1
        for i in range(last + 1):
            resample = "down" if i < last else None
            stage = self._stage(
                i, self.num_res_blocks, settings, resample=resample, name=f"down_{i}"
            )
            h = stage(h, keys)
        h = Middle(settings, self.attention, name="mid")(h, keys)
        h = nn.silu(settings.norm("norm_out")(h))
        return settings.conv(self.out_channels, axes=("conv_in", None), name="conv_out")(h)


class Decoder(_Network):
    """Feature maps to images; the mirror image of Encoder, with one more block per stage.

    Its products have the backend's fastest precision. Stages are named up_i with i counted from
    full resolution.
    """

    def setup(self) -> None:
        settings = self._settings()
        width = self.channels * self.multipliers[-1]
        self.conv_in = settings.conv(width, axes=(None, "conv_out"))
        self.mid = Middle(settings, self.attention)
        self.up = [
            self._stage(i, self.num_res_blocks + 1, settings, resample="up" if i else None)
            for i in range(len(self.multipliers))
        ]
        self.norm_out = settings.norm()
        # The sums of pixels are the result: float32 whatever the computing type.
        pixels = self.out_channels * self.patch_size**2
        self.conv_out = conv(pixels, axes=("conv_in", None), dtype=jnp.float32)

    def trunk(
        self, z: Float[Array, "B h w C"], keys: Key[Array, " B"] | None = None
    ) -> Float[Array, "B hp wp channels"]:
        """What the last convolution reads; hp = H / patch_size; keys: see `Encoder`."""
        h = self.mid(self.conv_in(z), keys)
        for stage in reversed(self.up):
            h = stage(h, keys)
        return nn.silu(self.norm_out(h))

    def pixels(self, h: Float[Array, "B hp wp channels"]) -> Float[Array, "B H W out_channels"]:
        """The last convolution: images in float32."""
        return depth_to_space(self.conv_out(h), self.patch_size)

    def __call__(
        self, z: Float[Array, "B h w C"], keys: Key[Array, " B"] | None = None
    ) -> Float[Array, "B H W out_channels"]:
        """Images in float32, not clipped; keys: see `Encoder`."""
        return self.pixels(self.trunk(z, keys))
