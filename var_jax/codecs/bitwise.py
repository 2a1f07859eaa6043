"""Multi-scale residual quantisation to bits, and bits that a model must learn to correct.

Infinity (arXiv 2412.04431), section 3: its visual tokenizer and bitwise self-correction.
"""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, UInt8

from var_jax.codecs.base import Lesson, Quantized, checked_features, prefix_of
from var_jax.fields import Field
from var_jax.pyramid import ScalePyramid
from var_jax.quantizers.spherical import BinarySpherical, bits_of, codes_of, entropy
from var_jax.resample import resize, weighted_mean


class Bitwise(nn.Module):
    """Bits of all levels whose codes add up to the feature map; it has no parameters.

    Level k holds the signs of the area-downsampled residual. Its codes (see `codes_of`), upsampled
    (bilinear), are added to f_hat, and the next level reads f_hat downsampled (bilinear, without
    antialiasing). Cells of the last level are those of the feature grid.

    With `flip_levels` a training lesson is corrupted: the state that later levels read and correct
    takes bits of which some are flipped, while the targets are the true bits of the residual
    against that state. A lesson is then made from the features, since the bits alone do not say
    what the residuals would be.

    Attributes:
      pyramid: level shapes in tokens; its grid is that of the features, `patch` times the last
        level.
      num_bits: d, channels of the features.
      patch: a token stands for this many cells along each axis, with their bits channel by
        channel, the cells of a channel row by row.
      flip_levels: number of levels, from the first, whose bits are flipped in training.
      flip_strength: the largest probability of a flip. Each level of each example draws its own
        among 0, 0.01, ..., flip_strength.
      commitment_weight, entropy_weight, inverse_temperature: see `BinarySpherical`.
    """

    pyramid: ScalePyramid
    num_bits: int
    patch: int = 1
    flip_levels: int = 0
    flip_strength: float = 0.3
    commitment_weight: float = BinarySpherical.commitment_weight
    entropy_weight: float = BinarySpherical.entropy_weight
    inverse_temperature: float = BinarySpherical.inverse_temperature

    def __post_init__(self) -> None:
        super().__post_init__()
        last = self._cells(self.pyramid.num_levels - 1)
        if last != self.pyramid.grid:
            raise ValueError(
                f"The last level {self.pyramid.shapes[-1]} of patches of {self.patch} has the "
                f"cells {last}, but the feature map {self.pyramid.grid}; give the pyramid that "
                "grid."
            )
        if not 0 <= self.flip_strength <= 1:
            raise ValueError(f"flip_strength must be in [0, 1], got {self.flip_strength}.")

    @property
    def feature_dim(self) -> int:
        """Channels of the features."""
        return self.num_bits

    @property
    def encoded_dim(self) -> int:
        """The same."""
        return self.num_bits

    @property
    def code_dim(self) -> int:
        """Bits of a token, and channels of an input."""
        return self.num_bits * self.patch**2

    @property
    def codebook_size(self) -> int:
        """There is no codebook."""
        return 0

    @property
    def target(self) -> Field:
        """The bits of a token."""
        return Field("bits", (self.code_dim,), "uint8", num_values=2)

    @property
    def source(self) -> Field:
        """The bits of all levels, eight in a byte; or the features, where bits are flipped."""
        if self.flip_levels:
            return Field("features", (*self.pyramid.grid, self.feature_dim), "float16")
        size = math.ceil(self.pyramid.length * self.code_dim / 8)
        return Field("packed_bits", (size,), "uint8", num_values=256)

    def encode(self, features: Float[jax.Array, "B h w d"]) -> UInt8[jax.Array, "B L b"]:
        """Features -> bits."""
        return self._follow(checked_features(self, features)).targets

    def nearest(
        self,
        features: Float[jax.Array, "B h w d"],
        carry: jax.Array | None,
        level: int,
        weights: Float[jax.Array, "B h w"] | None = None,
    ) -> UInt8[jax.Array, "B n b"]:
        """Bits of what is left of the features; see `Codec`."""
        f = checked_features(self, features)
        rest = f if carry is None else f - carry
        return bits_of(self._in_tokens(weighted_mean(rest, weights, self._cells(level))))

    def read(self, features: Float[jax.Array, "B h w d"]) -> jax.Array:
        """Features -> what `source` describes: uint8 [B, n], or float16 [B, h, w, d]."""
        if self.flip_levels:
            return checked_features(self, features).astype(jnp.float16)
        bits = self.encode(features)
        return jnp.packbits(bits.reshape(bits.shape[0], -1), axis=1)

    def lesson(
        self,
        source: jax.Array,
        pyramid: ScalePyramid | None = None,
        keys: jax.Array | None = None,
    ) -> Lesson:
        """Inputs and targets; with keys and `flip_levels` after flips, see the class.

        Args:
          source: see `read`.
          pyramid: a prefix of the codec's own.
          keys: one PRNG key for each example [B], or None.

        Raises:
          ValueError: the pyramid is no prefix of the codec's own, on whose residuals bits hang.
        """
        pyramid = prefix_of(self, pyramid)
        if self.flip_levels:
            flips = None if keys is None else self.draw_flips(keys)
            return self.corrected(source, flips, pyramid)
        count = self.pyramid.length * self.code_dim
        bits = jnp.unpackbits(source, axis=1, count=count)
        bits = bits.reshape(-1, self.pyramid.length, self.code_dim)[:, : pyramid.length]
        carry, inputs = None, []
        for k, target in enumerate(pyramid.split(bits)):
            carry, following = self.advance(carry, k, target, pyramid)
            inputs.append(following)
        return Lesson(self._inputs(inputs, bits.shape[0]), bits)

    def corrected(
        self,
        features: Float[jax.Array, "B h w d"],
        flips: Bool[jax.Array, "B L b"] | None,
        pyramid: ScalePyramid | None = None,
    ) -> Lesson:
        """The lesson of features whose bits are flipped where told.

        Args:
          features: of the whole pyramid.
          flips: bits that the state takes flipped; None is none.
          pyramid: a prefix of the codec's own.
        """
        return self._follow(checked_features(self, features), flips, prefix_of(self, pyramid))

    def draw_flips(self, keys: jax.Array) -> Bool[jax.Array, "B L b"]:
        """Which bits of examples are flipped, one PRNG key for each."""

        levels = self.pyramid.level_ids

        def draw(key: jax.Array) -> jax.Array:
            strength_key, flip_key = jax.random.split(key)
            steps = round(100 * self.flip_strength)
            count = self.pyramid.num_levels
            strength = 0.01 * jax.random.randint(strength_key, (count,), 0, steps + 1)
            strength = jnp.where(jnp.arange(count) < self.flip_levels, strength, 0.0)
            drawn = jax.random.uniform(flip_key, (len(levels), self.code_dim))
            return drawn < strength[levels][:, None]

        return jax.vmap(draw)(keys)

    def advance(
        self,
        carry: jax.Array | None,
        level: int,
        target: UInt8[jax.Array, "B n b"],
        pyramid: ScalePyramid | None = None,
    ) -> tuple[jax.Array, Float[jax.Array, "B m b"] | None]:
        """Adds one level to f_hat.

        Args:
          carry: f_hat float32 [B, h, w, d], or None before level 0.
          level: k in [0, K).
          target: bits of the level.
          pyramid: any. Of one that is no prefix of the codec's own, the last level's cells are
            those of the features.

        Returns:
          The new f_hat, and the next level's input float32 (None after the last).
        """
        pyramid = pyramid or self.pyramid
        own = self.pyramid.starts_with(pyramid)
        grid = self.pyramid.grid if own else self._cells(pyramid.num_levels - 1, pyramid)
        codes = codes_of(self._in_cells(target, self._cells(level, pyramid)))
        f_hat = resize(codes, grid, "bilinear")
        if carry is not None:
            f_hat = carry + f_hat
        if level + 1 == pyramid.num_levels:
            return f_hat, None
        following = resize(f_hat, self._cells(level + 1, pyramid), "bilinear")
        return f_hat, self._in_tokens(following)

    def finish(self, carry: jax.Array) -> Float[jax.Array, "B h w d"]:
        """f_hat after any level -> features."""
        return carry

    def decode(self, targets: UInt8[jax.Array, "B L b"]) -> Float[jax.Array, "B h w d"]:
        """Bits of all levels -> features."""
        return self.features_by_level(targets)[-1]

    def features_by_level(self, targets: UInt8[jax.Array, "B L b"]) -> list[jax.Array]:
        """Bits of all levels -> K times float32 [B, h, w, d], the sum after each level."""
        carry, sums = None, []
        for k, target in enumerate(self.pyramid.split(targets)):
            carry, _ = self.advance(carry, k, target)
            sums.append(carry)
        return sums

    def quantize(
        self,
        features: Float[jax.Array, "B h w d"],
        exact: bool | jax.Array = False,
        keys: jax.Array | None = None,
    ) -> Quantized:
        """Quantises for training; the loss is the mean over levels of that of `BinarySpherical`.

        The gradient of each level's codes reaches the features through the level's residual, in
        which the codes of the levels before it are constants.

        Args:
          features: of the whole pyramid.
          exact: bool or bool scalar. Where true, the features pass unquantised and the loss is 0.

        Returns:
          Quantized, with the metrics 'commitment', 'choice_entropy' and 'batch_entropy', see
          `BinarySpherical`, and 'bit_usage' and 'bit_usage_level' [K]: the entropy, in bits, of
          a bit's mean over the batch. 1 is both values equally often, 0 a bit that never changes.
        """
        quantizer = BinarySpherical(
            self.commitment_weight, self.entropy_weight, self.inverse_temperature
        )
        f = checked_features(self, features)
        rest, f_hat, loss, vectors, usage = f, jnp.zeros_like(f), 0.0, [], []
        parts: list[dict[str, jax.Array]] = []
        for k in range(self.pyramid.num_levels):
            wanted = resize(rest, self._cells(k), "area")
            codes, level_loss, level_parts = quantizer(wanted)
            codes = resize(codes, self.pyramid.grid, "bilinear")
            rest, f_hat = rest - jax.lax.stop_gradient(codes), f_hat + codes
            loss += level_loss / self.pyramid.num_levels
            parts.append(level_parts)
            vectors.append(self._in_tokens(jax.lax.stop_gradient(wanted)))
            share = bits_of(vectors[-1]).mean((0, 1), dtype=jnp.float32)
            usage.append(entropy(share).mean() / math.log(2))
        metrics = {name: jnp.stack([p[name] for p in parts]).mean() for name in parts[0]}
        metrics |= {"bit_usage": jnp.stack(usage).mean(), "bit_usage_level": jnp.stack(usage)}
        vectors = jnp.concatenate(vectors, 1)
        return Quantized(
            features=jnp.where(exact, f, f_hat),
            loss=jnp.where(exact, 0.0, loss),
            targets=bits_of(vectors),
            vectors=vectors,
            metrics=metrics,
        )

    def _follow(
        self,
        features: jax.Array,
        flips: jax.Array | None = None,
        pyramid: ScalePyramid | None = None,
    ) -> Lesson:
        """What follows from features level by level: `advance`, folded over their bits."""
        pyramid, carry, targets, inputs = prefix_of(self, pyramid), None, [], []
        for k in range(pyramid.num_levels):
            bits = self.nearest(features, carry, k)
            targets.append(bits)
            if flips is not None:
                bits = bits ^ flips[:, pyramid.level(k)].astype(jnp.uint8)
            carry, following = self.advance(carry, k, bits, pyramid)
            inputs.append(following)
        return Lesson(self._inputs(inputs, features.shape[0]), jnp.concatenate(targets, 1))

    def _inputs(self, following: list[jax.Array | None], batch: int) -> jax.Array:
        """Inputs of a pass, from what `advance` gave; the rows of level 0 are zeros."""
        first = jnp.zeros((batch, self.pyramid.sizes[0], self.code_dim), jnp.float32)
        return jnp.concatenate([first, *following[:-1]], 1)

    @nn.nowrap
    def _cells(self, level: int, pyramid: ScalePyramid | None = None) -> tuple[int, int]:
        """Rows and columns of a level's cells."""
        h, w = (pyramid or self.pyramid).shapes[level]
        return h * self.patch, w * self.patch

    def _in_cells(self, tokens: jax.Array, cells: tuple[int, int]) -> jax.Array:
        """[B, n, b] of a level of h' x w' cells -> [B, h', w', d]."""
        (h, w), p = cells, self.patch
        x = tokens.reshape(tokens.shape[0], h // p, w // p, self.num_bits, p, p)
        return x.transpose(0, 1, 4, 2, 5, 3).reshape(-1, h, w, self.num_bits)

    def _in_tokens(self, cells: jax.Array) -> jax.Array:
        """[B, h', w', d] -> [B, n, b]."""
        batch, h, w, _ = cells.shape
        p = self.patch
        x = cells.reshape(batch, h // p, p, w // p, p, self.num_bits)
        return x.transpose(0, 1, 3, 5, 2, 4).reshape(batch, -1, self.code_dim)
