"""The contract of a codec: what is predicted at each level of the pyramid."""

from __future__ import annotations

from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Float

from var_jax.fields import Field
from var_jax.pyramid import ScalePyramid


@struct.dataclass
class Lesson:
    """What a teacher-forced pass over a pyramid reads and should predict.

    Attributes:
      inputs: float32 [B, L, D]; level k's rows depend on targets of levels < k only.
      targets: [B, L, ...], what the head predicts.
      weights: float32 [L] or [B, L], factors on the tokens' losses; None is 1.
    """

    inputs: jax.Array
    targets: jax.Array
    weights: jax.Array | None = None


@struct.dataclass
class Quantized:
    """What training a tokenizer needs to know about a batch that went through its codec.

    Attributes:
      features: float32 [B, h, w, C], what the decoder gets, with the straight-through gradient.
      loss: float32 scalar, of the codec alone.
      targets: [B, L, ...], see `Codec.encode`.
      vectors: float32 [B, L, C], what the targets were chosen for; no gradient.
      metrics: float32 scalars by name.
      measured: float32 [B, ...] of each example, by the name of the codec's parameter that is to be
        their running mean instead of being trained.
    """

    features: jax.Array
    loss: jax.Array
    targets: jax.Array
    vectors: jax.Array
    metrics: dict[str, jax.Array] = struct.field(default_factory=dict)
    measured: dict[str, jax.Array] = struct.field(default_factory=dict)


class Codec(Protocol):
    """Turns a feature map into one target for each token, and targets into a feature map again.

    A codec is a flax module without anything but parameters. `advance` is the recurrence that
    sampling runs level by level; `lesson` is the same recurrence folded over targets that are
    known already. The carry belongs to the codec: None stands before level 0, and callers only
    hand it on. A `pyramid` argument is another one than the codec's own, for codecs whose levels
    do not depend on each other; the others take prefixes of their own.

    Attributes:
      pyramid: the level shapes.
      feature_dim: C, channels of the feature map that the decoder gets.
      encoded_dim: channels of the feature map that the encoder gives and all methods read; other
        than C where it holds the moments of a posterior.
      code_dim: D, channels of the inputs.
      target: of one token: what heads predict.
      source: of one example: what `lesson` starts from, and a token cache stores.
      codebook_size: V, where the codec looks vectors up in a codebook that it trains (parameter
        'codebook'); 0 where there is none.
      normalize_codes: of a codec with a codebook: codes are chosen by direction.
    """

    pyramid: ScalePyramid
    feature_dim: int
    encoded_dim: int
    code_dim: int
    target: Field
    source: Field
    codebook_size: int
    normalize_codes: bool

    def encode(self, features: Float[jax.Array, "B h w C"]) -> jax.Array:
        """Features -> the targets of all levels, [B, L, ...]."""

    def read(self, features: Float[jax.Array, "B h w C"]) -> jax.Array:
        """Features -> what `source` describes, [B, ...]."""

    def lesson(
        self,
        source: jax.Array,
        pyramid: ScalePyramid | None = None,
        keys: jax.Array | None = None,
    ) -> Lesson:
        """What a pass over the pyramid learns from examples.

        Args:
          source: see `read`.
          pyramid: see the class.
          keys: one PRNG key for each example [B] where a lesson is corrupted or drawn in training;
            None in evaluation.
        """

    def advance(
        self, carry: Any, level: int, target: jax.Array, pyramid: ScalePyramid | None = None
    ) -> tuple[Any, Float[jax.Array, "B n D"] | None]:
        """Adds one level.

        Args:
          carry: None before level 0, afterwards what the previous call returned.
          level: the level that `target` belongs to.
          target: the targets of this level, [B, n_level, ...].
          pyramid: see the class.

        Returns:
          The new carry, and the next level's input (None after the last).
        """

    def nearest(
        self,
        features: Float[jax.Array, "B h w C"],
        carry: Any,
        level: int,
        weights: Float[jax.Array, "B h w"] | None = None,
    ) -> jax.Array:
        """The targets of a level after which the sum is nearest to features.

        A fold of it and `advance` is `encode`; here the carry may be that of other targets.

        Args:
          features: to come near to.
          carry: see `advance`.
          level: of the targets, in the codec's own pyramid.
          weights: in [0, 1], how much each cell of the features counts; None is all alike. The
            targets of what does not count at all are those of a zero vector.
        """

    def finish(self, carry: Any) -> Float[jax.Array, "B h w C"]:
        """The carry after any level -> features float32, for the decoder."""

    def decode(self, targets: jax.Array) -> Float[jax.Array, "B h w C"]:
        """The targets of all levels -> features float32."""

    def features_by_level(self, targets: jax.Array) -> list[jax.Array]:
        """Targets -> what `finish` gives after each level, K arrays."""

    def quantize(
        self,
        features: Float[jax.Array, "B h w C"],
        exact: bool | jax.Array = False,
        keys: jax.Array | None = None,
    ) -> Quantized:
        """The way of features in training a tokenizer.

        Args:
          features: of the encoder.
          exact: as if nothing were lost.
          keys: one PRNG key for each example [B] where something is drawn; None in evaluation.
        """


def checked_features(codec: Codec, features: jax.Array) -> Float[jax.Array, "B h w C"]:
    """Features as float32.

    Raises:
      ValueError: they do not have the codec's grid and channels.
    """
    expected = (*codec.pyramid.grid, codec.encoded_dim)
    if features.shape[1:] != expected:
        raise ValueError(
            "The grid of the pyramid's last level and the codec's code_dim or num_bits ask for "
            f"features of {expected}, but they have {features.shape[1:]}; change patch_nums, the "
            "image size, code_dim or num_bits."
        )
    return features.astype(jnp.float32)


def prefix_of(codec: Codec, pyramid: ScalePyramid | None) -> ScalePyramid:
    """The pyramid that a codec of residuals is asked for; None is the codec's own.

    Raises:
      ValueError: it is no prefix of the codec's own, on whose levels the residuals hang.
    """
    if pyramid is None:
        return codec.pyramid
    if not codec.pyramid.starts_with(pyramid):
        raise ValueError(
            f"These targets are of residuals of the levels {codec.pyramid.shapes}, not of "
            f"{pyramid.shapes}; take its first levels, or a codec whose levels stand alone."
        )
    return pyramid
