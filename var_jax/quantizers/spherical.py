"""Binary spherical quantisation, arXiv 2406.07548: the nearest corner of a cube in the sphere.

There is no codebook: a vector of d channels is normalised, and the signs of its channels are its
d bits. Bit b stands for (2 b - 1) / sqrt(d), so a code is a unit vector too.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Float, UInt8

from var_jax.quantizers.nearest import unit


def bits_of(vectors: Float[jax.Array, "*n d"]) -> UInt8[jax.Array, "*n d"]:
    """1 where a channel is positive, else 0; the length of a vector does not matter."""
    return (vectors > 0).astype(jnp.uint8)


def codes_of(bits: UInt8[jax.Array, "*n d"]) -> Float[jax.Array, "*n d"]:
    """The unit vectors that bits stand for, float32."""
    return (2 * bits.astype(jnp.float32) - 1) * bits.shape[-1] ** -0.5


@dataclasses.dataclass(frozen=True)
class BinarySpherical:
    """How vectors are quantised while a tokenizer trains.

    A bit is taken as drawn: it is 1 with probability sigmoid(4 t z / sqrt(d)) for a channel z of
    the unit vector. The entropy of that choice is to be small for each vector (a sure choice) and
    large for its mean over the batch (both values used), each a sum over the bits.

    Attributes:
      commitment_weight: of the mean squared distance of unit vectors from their codes.
      entropy_weight: of (entropy of a choice - entropy of the mean choice) / t.
      inverse_temperature: t, how sure a choice is.
    """

    commitment_weight: float = 0.25
    entropy_weight: float = 0.1
    inverse_temperature: float = 100.0

    def __call__(
        self, vectors: Float[jax.Array, "*n d"]
    ) -> tuple[Float[jax.Array, "*n d"], Float[jax.Array, ""], dict[str, jax.Array]]:
        """Quantises a batch of vectors.

        Returns:
          The codes, with the gradient of the unit vectors (straight through); the loss, of which
          the batch is all axes but the last; and its parts by name, not weighted.
        """
        z = unit(vectors)
        codes = codes_of(bits_of(vectors))
        t, dim = self.inverse_temperature, vectors.shape[-1]
        log_odds = (4 * t * dim**-0.5) * z
        one = jax.nn.sigmoid(log_odds)
        # Exact where a choice is so sure that its probability rounds to 0 or 1.
        sure = one * jax.nn.softplus(-log_odds) + (1 - one) * jax.nn.softplus(log_odds)
        mean = one.mean(tuple(range(one.ndim - 1)))
        parts = {
            "commitment": jnp.mean(jnp.square(z - codes)),
            "choice_entropy": sure.sum(-1).mean(),
            "batch_entropy": entropy(mean).sum(),
        }
        penalty = (parts["choice_entropy"] - parts["batch_entropy"]) / t
        loss = self.commitment_weight * parts["commitment"] + self.entropy_weight * penalty
        return z + jax.lax.stop_gradient(codes - z), loss, parts


def entropy(probability: Float[jax.Array, "*n"]) -> Float[jax.Array, "*n"]:
    """Of a choice between two of which one has this probability, in nats."""
    # A mean may round to a little more than 1.
    return sum(-p * jnp.log(jnp.maximum(p, 1e-8)) for p in (probability, 1 - probability))
