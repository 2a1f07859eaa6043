"""The masked autoencoder that MAR draws with (arXiv 2406.11838, section 3.3 and appendix B).

An encoder reads the tokens that are known, and no others; a decoder reads what it makes of them and
a mask embedding in the place of each token that is not known. Attention is bidirectional in both.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from var_jax.context import OwnScale, key_segments
from var_jax.pyramid import ScalePyramid
from var_jax.settings import Changeable
from var_jax.transformer.attention import BlockSettings
from var_jax.transformer.condition import Condition, Conditioner, conditioner_of
from var_jax.transformer.layers import Linear, folded, init_std
from var_jax.transformer.stack import Stack, check_remat


class MAR(nn.Module):
    """Encoder of the known tokens of one level, and decoder of all of its tokens.

    The condition comes as `num_buffer` equal tokens before the others, each with a position of its
    own: without them an encoder that knows nothing yet would have nothing to read.

    How many tokens are known differs from example to example, but shapes must not: the known ones
    are moved to the front of as many places as a pass can need, and a mask hides what is left over
    of these from attention. A mask over all L places would do as well, but not save anything: in
    training, where at most 76 of 256 tokens are known, the encoder so has 140 places, not 320.

    Blocks are those of a ViT.

    Attributes:
      pyramid: of a single level; L tokens.
      num_classes: labels are 0..num_classes - 1; label num_classes is 'no class'.
      code_dim: channels of a token.
      depth: number of blocks of the encoder.
      width: C.
      num_heads: heads; divides width.
      decoder_depth: number of blocks of the decoder; None is depth.
      conditioner: of another kind than class labels; its vector is what is read.
      num_buffer: see above.
      min_masked: share of the tokens that a training pass masks at least.
      mlp_ratio: hidden width of the MLP over C.
      class_drop_rate: probability that a label is replaced by 'no class' in training.
      dropout: see `BlockSettings`; 0.1 officially.
      remat, scan_unroll, attention_implementation, dtype: see `VAR`.
    """

    #: See `VAR`.
    mixer: ClassVar[None] = None

    pyramid: ScalePyramid
    num_classes: int
    code_dim: int
    depth: int
    width: int
    num_heads: int
    decoder_depth: int | None = None
    conditioner: Conditioner | None = None
    num_buffer: int = 64
    min_masked: float = 0.7
    mlp_ratio: float = 4.0
    class_drop_rate: float = 0.1
    dropout: float = 0.0
    remat: Changeable[str] = "none"
    scan_unroll: Changeable[int] = 1
    attention_implementation: Changeable[str | None] = None
    dtype: jnp.dtype = jnp.float32

    def __post_init__(self) -> None:
        super().__post_init__()
        self._settings(self.depth)  # Raises if they do not fit each other.
        if self.pyramid.num_levels != 1:
            raise ValueError(
                f"MAR draws the tokens of one level, not of {self.pyramid.shapes}; give one, such "
                "as patch_nums=(16,)."
            )
        if self.num_buffer < 1 or not 0 <= self.min_masked <= 1:
            raise ValueError(
                f"num_buffer is {self.num_buffer} and min_masked {self.min_masked}; give 1 token "
                "or more, and a share from 0 to 1."
            )
        check_remat(self.remat)

    @nn.nowrap
    def _settings(self, depth: int) -> BlockSettings:
        return BlockSettings(
            width=self.width,
            num_heads=self.num_heads,
            depth=depth,
            mlp_ratio=self.mlp_ratio,
            qk_norm=False,
            style="vit",
            dropout=self.dropout,
            attention_implementation=self.attention_implementation,
            dtype=self.dtype,
        )

    @nn.nowrap
    def conditioning(self) -> Conditioner:
        """The conditioner without parameters; see `VAR.conditioning`."""
        return conditioner_of(self)

    @nn.nowrap
    def sees(self) -> OwnScale:
        """See `VAR.sees`."""
        return OwnScale()

    @property
    def max_known(self) -> int:
        """Tokens that are known in a training pass at most."""
        return self.pyramid.length - math.ceil(self.min_masked * self.pyramid.length)

    @nn.nowrap
    def flops(self, pyramid: ScalePyramid, levels: range) -> float:
        """Matrix-product operations of a training pass."""
        width, known, length = self.width, self.max_known, self.pyramid.length

        def blocks(count: int, tokens: int) -> float:
            dense = 2 * tokens * width * width * (4 + 2 * self.mlp_ratio)
            return count * (dense + 4 * tokens * tokens * width)

        encoded = self.num_buffer + known
        embedded = 2 * width * (known * self.code_dim + encoded * width)
        decoder = blocks(self.decoder_depth or self.depth, self.num_buffer + length)
        return blocks(self.depth, encoded) + embedded + decoder

    def setup(self) -> None:
        width, std = self.width, init_std(self.width)

        def table(name: str, size: int) -> jax.Array:
            boxed = nn.with_logical_partitioning(nn.initializers.normal(std), ("position", "embed"))
            return self.param(name, boxed, (size, width), jnp.float32)

        def norm() -> nn.LayerNorm:
            ones, zeros = nn.initializers.ones, nn.initializers.zeros
            return nn.LayerNorm(
                1e-6,
                dtype=jnp.float32,
                use_fast_variance=False,
                scale_init=nn.with_logical_partitioning(ones, ("embed",)),
                bias_init=nn.with_logical_partitioning(zeros, ("embed",)),
            )

        self._condition = self.conditioning()
        nn.share_scope(self, self._condition)
        buffered = self.num_buffer + self.pyramid.length
        self.encoder_position = table("encoder_position", buffered)
        self.decoder_position = table("decoder_position", buffered)
        self.state_position = table("state_position", self.pyramid.length)
        self.mask_embedding = table("mask_embedding", 1)
        self.token_projection = Linear((self.code_dim,), (width,), ("code", "embed"), std)
        self.decoder_projection = Linear(
            (width,), (width,), ("cond", "embed"), std, self.dtype, sum_dtype=jnp.float32
        )
        self.input_norm, self.encoder_norm, self.decoder_norm = norm(), norm(), norm()
        loop = (0.0, self.remat, self.scan_unroll)
        self.encoder = Stack(self._settings(self.depth), *loop)
        self.decoder = Stack(self._settings(self.decoder_depth or self.depth), *loop)

    def __call__(
        self,
        own: Float[jax.Array, "B L D"],
        given: Any,
        keys: jax.Array | None = None,
        *,
        masked: Bool[jax.Array, "B L"] | None = None,
        max_known: int | None = None,
    ) -> Float[jax.Array, "B L C"]:
        """Hidden states of all tokens, given those that are not masked.

        Args:
          own: the tokens; those that are masked are not read.
          given: what is asked for, see `Conditioner`; class labels int32 [B] by default.
          keys: one PRNG key for each example [B], for dropout; None in evaluation.
          masked: which tokens are to be filled in; all by default.
          max_known: an upper bound of how many are not, in any example; see the class. By default
            that of a training pass.

        Returns:
          float32, ready for the head.
        """
        masked = jnp.ones(own.shape[:2], bool) if masked is None else masked
        max_known = self.max_known if max_known is None else max_known
        buffer, batch = self.num_buffer, len(own)
        condition = self._condition(given, keys)
        # Known tokens first, in the order of their positions.
        places = jnp.argsort(masked, axis=1, stable=True)[:, :max_known]
        known = jnp.arange(max_known) < (~masked).sum(1, keepdims=True)
        x = self.token_projection(_rows(own.astype(jnp.float32), places))
        x = x + jnp.take(self.encoder_position[buffer:], places, axis=0)
        first = jnp.repeat(condition.vector[:, None], buffer, 1) + self.encoder_position[:buffer]
        x = self.input_norm(jnp.concatenate([first, x], 1))
        there = jnp.concatenate([jnp.ones((batch, buffer), bool), known], 1)
        x = self._blocks(self.encoder, x, condition, folded(keys, 1), there)
        # Said as after a block: left to the compiler, a mesh with a tensor axis gave other numbers.
        x = nn.with_logical_constraint(self.encoder_norm(x), ("batch", "length", "act_embed"))
        x = self.decoder_projection(x)

        # A token that is not known takes a place that is not looked at, which is the buffer's.
        place = jnp.where(masked, 0, buffer - 1 + jnp.cumsum(~masked, axis=1))
        filled = jnp.where(masked[..., None], self.mask_embedding, _rows(x, place))
        x = jnp.concatenate([x[:, :buffer], filled], 1) + self.decoder_position
        x = self.decoder_norm(self._blocks(self.decoder, x, condition, folded(keys, 2)))
        return x[:, buffer:] + self.state_position

    def _blocks(
        self,
        stack: Stack,
        x: jax.Array,
        condition: Condition,
        keys: jax.Array | None,
        present: jax.Array | None = None,
    ) -> jax.Array:
        """A stack in which all tokens, or all that are there, see each other."""
        segments = key_segments(ScalePyramid(((1, x.shape[1]),)), OwnScale())
        found, _ = stack(x, condition, lambda _: segments, lambda x: x, keys=keys, present=present)
        return found


def _rows(x: Float[jax.Array, "B n C"], places: jax.Array) -> Float[jax.Array, "B m C"]:
    """The tokens at int [B, m] places of each example."""
    return jnp.take_along_axis(x, places[..., None], axis=1)
