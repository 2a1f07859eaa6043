"""Latents of a Gaussian posterior, at every level the whole map downsampled.

The autoencoder of latent diffusion (arXiv 2112.10752, section 3.1 and appendix G) and of MAR, which
is a variational one (arXiv 1312.6114): FlowAR, xAR and MAR learn from samples of its posterior.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from var_jax.codecs.base import Lesson, Quantized, checked_features
from var_jax.codecs.latent import Latent
from var_jax.fields import Field
from var_jax.pyramid import ScalePyramid

#: Of the logarithm of the variance, as in latent diffusion.
_LOG_VARIANCE_RANGE = (-30.0, 20.0)


class KLLatent(nn.Module):
    """Samples of the posterior, or its mean where nothing is drawn, in the levels of `Latent`.

    The encoder gives the moments of a diagonal normal distribution, mean and logarithm of the
    variance. A token cache stores both, in float16, so that every epoch draws other latents.

    Training a tokenizer decodes a sample and adds the Kullback-Leibler divergence of the posterior
    from N(0, 1), in nats for each of an image's latent numbers. With a small weight, as usual, it
    keeps the latents bounded and leaves them another variance than 1. So mean and variance of all
    samples are measured while it trains (parameter 'moments': running means of the numbers and of
    their squares), and targets are divided by that standard deviation, after the mean is taken off.

    Attributes:
      pyramid: level shapes; its grid is that of the features.
      code_dim: C, channels of a latent; the encoder gives twice as many.
    """

    pyramid: ScalePyramid
    code_dim: int

    def setup(self) -> None:
        self.levels = Latent(self.pyramid, self.code_dim)
        # Those of a standard normal distribution until something is measured.
        start = nn.with_logical_partitioning(lambda *_: jnp.array([0.0, 1.0]), (None,))
        self.moments = self.param("moments", start)

    @property
    def feature_dim(self) -> int:
        """Channels of what is decoded."""
        return self.code_dim

    @property
    def encoded_dim(self) -> int:
        """Channels of mean and logarithm of the variance."""
        return 2 * self.code_dim

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
        """The posterior's moments."""
        return Field("moments", (*self.pyramid.grid, self.encoded_dim), "float16")

    def encode(self, features: Float[jax.Array, "B h w E"]) -> Float[jax.Array, "B L C"]:
        """Latents of the posterior's mean; see `Codec`."""
        return self.levels.encode(self._scaled(self.posterior(features)[0]))

    def nearest(
        self,
        features: Float[jax.Array, "B h w E"],
        carry: Float[jax.Array, "B h w C"] | None,
        level: int,
        weights: Float[jax.Array, "B h w"] | None = None,
    ) -> Float[jax.Array, "B n C"]:
        """Latents of the posterior's mean, whatever the level before is; see `Codec`."""
        mean, _ = self.posterior(features)
        return self.levels.nearest(self._scaled(mean), carry, level, weights)

    def read(self, features: Float[jax.Array, "B h w E"]) -> Float[jax.Array, "B h w E"]:
        """The moments in the type in which they are stored."""
        return jnp.concatenate(self.posterior(features), -1).astype(self.source.dtype)

    def lesson(
        self,
        source: Float[jax.Array, "B h w E"],
        pyramid: ScalePyramid | None = None,
        keys: jax.Array | None = None,
    ) -> Lesson:
        """Inputs and targets of one sample of the posterior; without keys of its mean."""
        return self.levels.lesson(self._scaled(self.sample(source, keys)), pyramid)

    def advance(
        self,
        carry: Float[jax.Array, "B h w C"] | None,
        level: int,
        target: Float[jax.Array, "B n C"],
        pyramid: ScalePyramid | None = None,
    ) -> tuple[Float[jax.Array, "B h w C"], Float[jax.Array, "B m C"] | None]:
        """See `Latent.advance`."""
        return self.levels.advance(carry, level, target, pyramid)

    def finish(self, carry: Float[jax.Array, "B h w C"]) -> Float[jax.Array, "B h w C"]:
        """Latents on the grid -> what is decoded."""
        mean, std = self._normal()
        return carry * std + mean

    def decode(self, targets: Float[jax.Array, "B L C"]) -> Float[jax.Array, "B h w C"]:
        """The last level alone -> what is decoded."""
        return self.features_by_level(targets)[-1]

    def features_by_level(self, targets: Float[jax.Array, "B L C"]) -> list[jax.Array]:
        """Each level alone -> what is decoded."""
        return [self.finish(x) for x in self.levels.features_by_level(targets)]

    def quantize(
        self,
        features: Float[jax.Array, "B h w E"],
        exact: bool | jax.Array = False,
        keys: jax.Array | None = None,
    ) -> Quantized:
        """A sample of the posterior, without keys its mean, and the divergence; see the class.

        Metrics: 'latent_std', of all samples together, and 'posterior_std', the mean over an
        image's numbers.
        """
        mean, log_variance = self.posterior(features)
        drawn = jnp.where(exact, mean, self.sample(features, keys))
        divergence = 0.5 * (jnp.square(mean) + jnp.exp(log_variance) - 1 - log_variance).mean()
        targets = jax.lax.stop_gradient(self.encode(features))
        fixed = jax.lax.stop_gradient(drawn)
        axes = (1, 2, 3)
        return Quantized(
            features=drawn,
            loss=jnp.where(exact, 0.0, divergence),
            targets=targets,
            vectors=targets,
            metrics={"latent_std": fixed.std(), "posterior_std": jnp.exp(log_variance / 2).mean()},
            measured={"moments": jnp.stack([fixed.mean(axes), jnp.square(fixed).mean(axes)], -1)},
        )

    def posterior(
        self, features: Float[jax.Array, "B h w E"]
    ) -> tuple[Float[jax.Array, "B h w C"], Float[jax.Array, "B h w C"]]:
        """The encoder's features -> mean and logarithm of the variance, float32."""
        mean, log_variance = jnp.split(checked_features(self, features), 2, -1)
        return mean, jnp.clip(log_variance, *_LOG_VARIANCE_RANGE)

    def sample(
        self, features: Float[jax.Array, "B h w E"], keys: jax.Array | None
    ) -> Float[jax.Array, "B h w C"]:
        """A sample for each example and its key; the mean without keys."""
        mean, log_variance = self.posterior(features)
        if keys is None:
            return mean
        noise = jax.vmap(lambda key: jax.random.normal(key, mean.shape[1:]))(keys)
        return mean + jnp.exp(log_variance / 2) * noise

    def _normal(self) -> tuple[jax.Array, jax.Array]:
        """Mean and standard deviation that were measured."""
        mean, square = self.moments
        return mean, jnp.sqrt(jnp.maximum(square - jnp.square(mean), 1e-12))

    def _scaled(self, latents: jax.Array) -> jax.Array:
        mean, std = self._normal()
        return (latents - mean) / std
