"""The tokenizer: autoencoder and codec composed into images <-> tokens."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from var_jax.codecs.base import Codec, Quantized
from var_jax.settings import Changeable
from var_jax.tokenizer.autoencoder import Decoder, Encoder
from var_jax.tokenizer.layers import conv

ENCODER_PRECISIONS = ("highest", "high", "default")
#: Tells the codec's draws of an example from those of dropout.
_CODEC_STREAM = 1


@struct.dataclass
class TokenizerOutput:
    """What one training pass gives.

    Attributes:
      reconstruction: float32 [B, H, W, c], not clipped.
      hidden: float [B, H / p, W / p, channels] (p = patch_size), what the
        decoder's last convolution read.
      quantized: the codec's output.
    """

    reconstruction: jax.Array
    hidden: jax.Array
    quantized: Quantized


class VQVAE(nn.Module):
    """Multi-scale vector-quantised autoencoder (VAR, arXiv 2404.02905, section 3.2).

    With the codec `KLLatent` the same encoder and decoder are a variational one.

    The defaults are the released tokenizer. Image sides must be stride * pyramid.grid, where
    stride = patch_size * 2 ** (len(multipliers) - 1).

    Attributes:
      codec: between feature maps and tokens; it sets the feature channels. Its parameters are
        the subtree 'codec', so that it can also be applied alone.
      image_channels: c, 1 or 3.
      channels: width of the autoencoder's first stage.
      multipliers: width of each stage in units of `channels`, full resolution first.
      num_res_blocks: residual blocks a stage (the decoder has one more).
      attention: attention at the lowest resolution.
      decoder_attention: with attention, in the decoder's stage of that resolution too; MAR's
        autoencoder has it in the encoder's alone, and in the middle of both.
      patch_size: pixels of a square of this side are the input channels of the first convolution;
        1 is the official network, 2 or 4 one that computes far less.
      norm_groups: groups of the normalisation; must divide every width.
      dropout: rate inside the residual blocks.
      dtype: computing type of encoder and decoder; parameters, the codec and the sums of the last
        convolution are float32.
      remat: recompute residual blocks in the backward pass.
      encoder_precision: of the encoder's products where dtype is float32. 'highest' is float32 on
        every backend, at six passes of a TPU's matrix unit: the tokens are those of a CPU and of
        the official code, but for near ties. 'high' takes three passes; 'default' one, in
        bfloat16 (TensorFloat-32 on NVIDIA GPUs), and gives other tokens.
      latent_channels: between the encoder, or the decoder, and the convolution beside the codec; 0
        is the codec's feature channels.
      latent_kernel: side of the kernels of these two convolutions.
    """

    codec: Codec
    image_channels: int = 3
    channels: int = 160
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2
    attention: bool = True
    decoder_attention: bool = True
    patch_size: int = 1
    norm_groups: int = 32
    dropout: float = 0.0
    dtype: jnp.dtype = jnp.float32
    remat: Changeable[bool] = False
    encoder_precision: str = "highest"
    latent_channels: int = 0
    latent_kernel: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.encoder_precision not in ENCODER_PRECISIONS:
            raise ValueError(
                f"Unknown encoder_precision {self.encoder_precision!r} of the tokenizer; choose "
                f"one of {', '.join(ENCODER_PRECISIONS)}."
            )

    def setup(self) -> None:
        settings = {
            "channels": self.channels,
            "multipliers": tuple(self.multipliers),
            "num_res_blocks": self.num_res_blocks,
            "attention": self.attention,
            "patch_size": self.patch_size,
            "norm_groups": self.norm_groups,
            "dropout": self.dropout,
            "dtype": self.dtype,
            "remat": self.remat,
        }
        precision = self.encoder_precision if self.dtype == jnp.float32 else None
        self.encoder = Encoder(
            self.latent_channels or self.codec.encoded_dim, precision=precision, **settings
        )
        self.decoder = Decoder(
            self.image_channels, stage_attention=self.decoder_attention, **settings
        )
        # Next to the codec everything is exact: tokens hang on small differences.
        exact = {"axes": (None, None), "precision": jax.lax.Precision.HIGHEST, "dtype": jnp.float32}
        self.quant_conv = conv(self.codec.encoded_dim, self.latent_kernel, **exact)
        self.post_quant_conv = conv(
            self.latent_channels or self.codec.feature_dim, self.latent_kernel, **exact
        )

    @nn.nowrap
    def init_params(self, key: jax.Array) -> dict[str, Any]:
        """Parameters at initialisation, in the boxes that hold their logical axis names."""
        return self.init(key, jnp.zeros((1, *self.image_shape)))["params"]

    @property
    def stride(self) -> int:
        """Pixels of an image side for one cell of the feature map."""
        return self.patch_size * 2 ** (len(self.multipliers) - 1)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, c) of the images."""
        h, w = self.codec.pyramid.grid
        return h * self.stride, w * self.stride, self.image_channels

    def features(self, images: jax.Array, keys: jax.Array | None = None) -> jax.Array:
        """Images float [B, H, W, c] in [-1, 1] -> features float32 [B, h, w, `encoded_dim`].

        Args:
          images: of `image_shape`.
          keys: a PRNG key for each example [B], for dropout; None in evaluation.

        Raises:
          ValueError: the images have another shape than `image_shape`.
        """
        if images.shape[1:] != self.image_shape:
            raise ValueError(
                f"This tokenizer reads images of {self.image_shape} (stride {self.stride} times "
                f"the pyramid's last level {self.codec.pyramid.grid}), got {images.shape[1:]}."
            )
        return self.quant_conv(self.encoder(images, keys))

    def encode(self, images: jax.Array) -> jax.Array:
        """Images float [B, H, W, c] in [-1, 1] -> targets [B, L, ...], such as tokens."""
        return self.codec.encode(self.features(images))

    def read(self, images: jax.Array) -> jax.Array:
        """Images float [B, H, W, c] in [-1, 1] -> what `Codec.source` describes."""
        return self.codec.read(self.features(images))

    def decode(self, features: jax.Array) -> jax.Array:
        """Features float [B, h, w, C] -> images float32 [B, H, W, c], clipped to [-1, 1]."""
        return jnp.clip(self.decoder(self.post_quant_conv(features)), -1.0, 1.0)

    def decode_tokens(self, tokens: jax.Array) -> jax.Array:
        """Targets [B, L, ...] -> images float32 [B, H, W, c] in [-1, 1]."""
        return self.decode(self.codec.decode(tokens))

    def decode_levels(self, tokens: jax.Array) -> jax.Array:
        """Targets [B, L, ...] -> images float32 [K, B, H, W, c]: what the first 1 .. K levels
        show, in [-1, 1]."""
        return jnp.stack([self.decode(f) for f in self.codec.features_by_level(tokens)])

    def reconstruct(self, images: jax.Array) -> jax.Array:
        """Images float [B, H, W, c] in [-1, 1] -> images of the same shape and range."""
        return self.decode_tokens(self.encode(images))

    def pixels(self, hidden: jax.Array) -> jax.Array:
        """The decoder's last convolution, `hidden` -> images float32 [B, H, W, c]."""
        return self.decoder.pixels(hidden)

    def __call__(
        self,
        images: jax.Array,
        keys: jax.Array | None = None,
        exact: bool | jax.Array = False,
    ) -> TokenizerOutput:
        """A training pass.

        Args:
          images: float [B, H, W, c] in [-1, 1].
          keys: a PRNG key for each example [B], for dropout and what the codec draws; None in
            evaluation.
          exact: leave the features unquantised (see Codec.quantize).

        Returns:
          TokenizerOutput.
        """
        codec_keys = None
        if keys is not None:
            codec_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, _CODEC_STREAM)
        quantized = self.codec.quantize(self.features(images, keys), exact, codec_keys)
        hidden = self.decoder.trunk(self.post_quant_conv(quantized.features), keys)
        return TokenizerOutput(self.pixels(hidden), hidden, quantized)
