"""Vector quantisation of the whole latent at every level (FlexVAR, arXiv 2502.20313)."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from var_jax.codecs.base import Lesson, Quantized, checked_features
from var_jax.fields import Field
from var_jax.pyramid import ScalePyramid
from var_jax.quantizers.nearest import Codebook, unit
from var_jax.resample import resize, weighted_mean


class GroundTruthVQ(nn.Module):
    """Each level holds the nearest codes of the features, area-downsampled to its shape.

    No level hangs on another, so wherever a pyramid can be passed, any will do. A level reads the
    codes of the one before, resized (bicubic), and the last level alone is decoded. Vectors are
    compared by direction, and a code stands for its own, of length 1. All of it is float32.

    Attributes:
      pyramid: level shapes; its grid is that of the features.
      vocab_size: V, number of codes.
      code_dim: C, channels of the features and of a code.
      beta: weight of the commitment term in the loss.
    """

    pyramid: ScalePyramid
    vocab_size: int
    code_dim: int
    beta: float = 0.25

    @property
    def feature_dim(self) -> int:
        """Channels of the features."""
        return self.code_dim

    @property
    def encoded_dim(self) -> int:
        """The same."""
        return self.code_dim

    @property
    def codebook_size(self) -> int:
        """V."""
        return self.vocab_size

    @property
    def normalize_codes(self) -> bool:
        """Codes are chosen by direction; `CodebookLife` asks."""
        return True

    @property
    def target(self) -> Field:
        """A code."""
        return Field("tokens", (), num_values=self.vocab_size)

    @property
    def source(self) -> Field:
        """The features, of which any schedule can be taught."""
        return Field("features", (*self.pyramid.grid, self.code_dim), "float32")

    def setup(self) -> None:
        self.quantizer = Codebook(self.vocab_size, self.code_dim, normalize=True)
        nn.share_scope(self, self.quantizer)

    def encode(self, features: Float[jax.Array, "B h w C"]) -> Int[jax.Array, "B L"]:
        return self._choose(features, self.pyramid)[1]

    def nearest(
        self,
        features: Float[jax.Array, "B h w C"],
        carry: jax.Array | None,
        level: int,
        weights: Float[jax.Array, "B h w"] | None = None,
    ) -> Int[jax.Array, "B n"]:
        """Tokens of the features themselves, whatever the level before is; see `Codec`."""
        f = checked_features(self, features)
        means = weighted_mean(f, weights, self.pyramid.shapes[level])
        return self.quantizer.choose(unit(_tokens(means)))

    def read(self, features: Float[jax.Array, "B h w C"]) -> Float[jax.Array, "B h w C"]:
        return checked_features(self, features)

    def lesson(
        self,
        source: Float[jax.Array, "B h w C"],
        pyramid: ScalePyramid | None = None,
        keys: jax.Array | None = None,
    ) -> Lesson:
        """Inputs and targets of features over any pyramid; nothing is drawn."""
        pyramid = pyramid or self.pyramid
        _, codes = self._choose(source, pyramid)
        first = jnp.zeros((source.shape[0], pyramid.sizes[0], self.code_dim), jnp.float32)
        inputs = [first]
        for level, part in enumerate(pyramid.split(codes)[:-1]):
            inputs.append(_tokens(self._next(self._map(part, level, pyramid), level, pyramid)))
        return Lesson(jnp.concatenate(inputs, 1), codes)

    def advance(
        self,
        carry: jax.Array | None,
        level: int,
        target: jax.Array,
        pyramid: ScalePyramid | None = None,
    ) -> tuple[jax.Array, jax.Array | None]:
        """Replaces what was there by a level; see `Codec`.

        Args:
          carry: of the level before, which nothing is taken from.
          level: k in [0, K).
          target: int32 [B, n_k] tokens, or float [B, n_k, V] a distribution over the codes, of
            which the expected code is taken, at length 1.
          pyramid: any.

        Returns:
          The level's codes as features, float32 [B, h, w, C] on the pyramid's grid; and the next
          level's input float32 [B, n_{k+1}, C] (None after the last).
        """
        pyramid = pyramid or self.pyramid
        codes = self._map(target, level, pyramid)
        features = resize(codes, pyramid.grid, "bicubic")
        if level + 1 == pyramid.num_levels:
            return features, None
        return features, _tokens(self._next(codes, level, pyramid))

    def finish(self, carry: jax.Array) -> Float[jax.Array, "B h w C"]:
        return carry

    def decode(
        self, targets: jax.Array, pyramid: ScalePyramid | None = None
    ) -> Float[jax.Array, "B h w C"]:
        """Tokens of any pyramid, int32 [B, L] -> features: those of the last level."""
        return self.features_by_level(targets, pyramid)[-1]

    def features_by_level(
        self, targets: jax.Array, pyramid: ScalePyramid | None = None
    ) -> list[jax.Array]:
        """Tokens of any pyramid, int32 [B, L] -> what each level shows by itself."""
        pyramid = pyramid or self.pyramid
        parts = enumerate(pyramid.split(targets))
        return [self.advance(None, level, part, pyramid)[0] for level, part in parts]

    def quantize(
        self,
        features: jax.Array,
        exact: bool | jax.Array = False,
        keys: jax.Array | None = None,
    ) -> Quantized:
        """The last level with the straight-through gradient, and the two-sided loss of all levels.

        The decoder learns from the last level alone.

        Args:
          features: float [B, h, w, C].
          exact: bool or bool scalar. Where true, codes are the directions themselves and the loss
            is 0.
        """
        pyramid = self.pyramid
        vectors, targets = self._choose(features, pyramid)
        fixed = jax.lax.stop_gradient(vectors)
        codes = jnp.where(exact, fixed, unit(self.quantizer.look_up(targets)))
        chosen = jax.lax.stop_gradient(codes)
        squares = jnp.square(codes - fixed) + self.beta * jnp.square(vectors - chosen)
        # Every level counts alike, as in the residual codec.
        loss = sum(part.mean() for part in pyramid.split(squares)) / pyramid.num_levels
        last = pyramid.split(vectors + chosen - fixed)[-1]
        last = last.reshape(-1, *pyramid.shapes[-1], self.code_dim)
        return Quantized(
            features=resize(last, pyramid.grid, "bicubic"),
            loss=jnp.where(exact, 0.0, loss),
            targets=targets,
            vectors=fixed,
        )

    def _choose(self, features: jax.Array, pyramid: ScalePyramid) -> tuple[jax.Array, jax.Array]:
        """Features [B, h, w, C] -> directions [B, L, C] and their codes [B, L] at all levels."""
        features = checked_features(self, features)
        levels = [_tokens(resize(features, shape, "area")) for shape in pyramid.shapes]
        vectors = unit(jnp.concatenate(levels, 1))
        return vectors, self.quantizer.choose(vectors)

    def _map(self, codes: jax.Array, level: int, pyramid: ScalePyramid) -> jax.Array:
        """The codes of a level -> float32 [B, h_k, w_k, C]."""
        vectors = unit(self.quantizer.look_up(codes))
        return vectors.reshape(-1, *pyramid.shapes[level], self.code_dim)

    def _next(self, codes: jax.Array, level: int, pyramid: ScalePyramid) -> jax.Array:
        """A level's map as the next level reads it."""
        return resize(codes, pyramid.shapes[level + 1], "bicubic")


def _tokens(x: jax.Array) -> jax.Array:
    """[B, h, w, C] -> [B, h w, C]."""
    return x.reshape(x.shape[0], -1, x.shape[-1])
