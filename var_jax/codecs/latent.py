"""Continuous latents at every level: the whole feature map, downsampled (FlowAR, 2412.15205)."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from var_jax.codecs.base import Lesson, Quantized, checked_features
from var_jax.fields import Field
from var_jax.pyramid import ScalePyramid
from var_jax.resample import resize, weighted_mean

#: Types in which features may be stored.
_STORED = ("float16", "float32")


class Latent(nn.Module):
    """Each level holds the features over `scale`, area-downsampled to its shape; no parameters.

    No level is a residual of another, so any pyramid of the same feature map is served. What level
    k + 1 reads is level k, upsampled to the grid (bicubic) and area-downsampled to its own shape.

    Training a tokenizer changes no feature. So that the features keep a known size without the
    choice of a posterior, the loss is the Kullback-Leibler divergence from N(0, scale^2) of a
    normal distribution with each channel's mean and variance in the batch, averaged over channels:
    it fixes two moments of each channel and says nothing about a single image.

    Attributes:
      pyramid: level shapes; its grid is that of the features.
      code_dim: C, channels of the features and of a token.
      scale: standard deviation of the features: targets have about unit variance. Where the
        features come from elsewhere, what was measured of them; in a tokenizer that is trained
        here, what they are trained to.
      stored: type of features in a token cache.
    """

    pyramid: ScalePyramid
    code_dim: int
    scale: float = 1.0
    stored: str = "float16"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.scale > 0:
            raise ValueError(f"scale is a standard deviation and must be positive: {self.scale}.")
        if self.stored not in _STORED:
            raise ValueError(f"stored is {self.stored!r}; choose one of {', '.join(_STORED)}.")

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
        """No codebook."""
        return 0

    @property
    def target(self) -> Field:
        """The vector of a token."""
        return Field("latents", (self.code_dim,), "float32")

    @property
    def source(self) -> Field:
        """The features, not yet divided by `scale`."""
        return Field("features", (*self.pyramid.grid, self.code_dim), self.stored)

    def encode(self, features: Float[jax.Array, "B h w C"]) -> Float[jax.Array, "B L C"]:
        """See `Codec`."""
        return self._targets(features, self.pyramid)

    def nearest(
        self,
        features: Float[jax.Array, "B h w C"],
        carry: Float[jax.Array, "B h w C"] | None,
        level: int,
        weights: Float[jax.Array, "B h w"] | None = None,
    ) -> Float[jax.Array, "B n C"]:
        """Latents of the features themselves, whatever the level before is; see `Codec`."""
        latents = checked_features(self, features) / self.scale
        means = weighted_mean(latents, weights, self.pyramid.shapes[level])
        return means.reshape(len(means), -1, self.code_dim)

    def read(self, features: Float[jax.Array, "B h w C"]) -> Float[jax.Array, "B h w C"]:
        """The features in the type in which they are stored."""
        return checked_features(self, features).astype(self.stored)

    def lesson(
        self,
        source: Float[jax.Array, "B h w C"],
        pyramid: ScalePyramid | None = None,
        keys: jax.Array | None = None,
    ) -> Lesson:
        """Inputs and targets of features; nothing is drawn."""
        pyramid = pyramid or self.pyramid
        targets = self._targets(source, pyramid)
        carry, inputs = None, [jnp.zeros_like(targets[:, : pyramid.sizes[0]])]
        for k, target in enumerate(pyramid.split(targets)[:-1]):
            carry, following = self.advance(carry, k, target, pyramid)
            inputs.append(following)
        return Lesson(jnp.concatenate(inputs, 1), targets)

    def advance(
        self,
        carry: Float[jax.Array, "B h w C"] | None,
        level: int,
        target: Float[jax.Array, "B n C"],
        pyramid: ScalePyramid | None = None,
    ) -> tuple[Float[jax.Array, "B h w C"], Float[jax.Array, "B m C"] | None]:
        """Puts a level, on the grid, in the place of the one before.

        Args:
          carry: not used: a level stands alone.
          level: k.
          target: of the level.
          pyramid: of the level; the codec's own by default.

        Returns:
          The level on the grid, and the next level's input (None after the last).
        """
        pyramid = pyramid or self.pyramid
        batch = target.shape[0]
        latents = target.astype(jnp.float32).reshape(batch, *pyramid.shapes[level], self.code_dim)
        latents = resize(latents, self.pyramid.grid, "bicubic")
        if level + 1 == pyramid.num_levels:
            return latents, None
        following = resize(latents, pyramid.shapes[level + 1], "area")
        return latents, following.reshape(batch, -1, self.code_dim)

    def finish(self, carry: Float[jax.Array, "B h w C"]) -> Float[jax.Array, "B h w C"]:
        """Latents on the grid -> features."""
        return carry * self.scale

    def decode(self, targets: Float[jax.Array, "B L C"]) -> Float[jax.Array, "B h w C"]:
        """The last level alone -> features."""
        return self.features_by_level(targets)[-1]

    def features_by_level(self, targets: Float[jax.Array, "B L C"]) -> list[jax.Array]:
        """Each level alone -> features."""
        levels = enumerate(self.pyramid.split(targets))
        return [self.finish(self.advance(None, k, target)[0]) for k, target in levels]

    def quantize(
        self,
        features: Float[jax.Array, "B h w C"],
        exact: bool | jax.Array = False,
        keys: jax.Array | None = None,
    ) -> Quantized:
        """The features as they are, and what keeps their size, see the class.

        Metrics: 'latent_std', root mean variance of the channels.
        """
        features = checked_features(self, features)
        mean, variance = features.mean((0, 1, 2)), features.var((0, 1, 2))
        ratio = jnp.maximum(variance, 1e-8) / self.scale**2
        divergence = 0.5 * (jnp.square(mean / self.scale) + ratio - 1 - jnp.log(ratio)).mean()
        targets = jax.lax.stop_gradient(self.encode(features))
        return Quantized(
            features=features,
            loss=jnp.where(exact, 0.0, divergence),
            targets=targets,
            vectors=targets,
            metrics={"latent_std": jnp.sqrt(variance.mean())},
        )

    def _targets(self, features: jax.Array, pyramid: ScalePyramid) -> jax.Array:
        """Features [B, h, w, C] -> the latents of all levels [B, L, C], float32."""
        latents = checked_features(self, features) / self.scale
        levels = [resize(latents, shape, "area") for shape in pyramid.shapes]
        return jnp.concatenate([x.reshape(len(x), -1, self.code_dim) for x in levels], 1)
