"""A trained codebook, of which the nearest code is taken."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

# A code is chosen by small differences of sums, so nothing here may run in bfloat16.
_HIGHEST = jax.lax.Precision.HIGHEST


def nearest_codes(
    vectors: Float[jax.Array, "*n C"], codebook: Float[jax.Array, "V C"], normalize: bool = False
) -> Int[jax.Array, "*n"]:
    """The nearest code of each vector, in [0, V); of equals, the first.

    Args:
      vectors: float32.
      codebook: float32.
      normalize: compare directions (cosine) instead of Euclidean distances.
    """
    return jnp.argmin(_distances(vectors, codebook, normalize), -1).astype(jnp.int32)


def ranked_codes(
    vectors: Float[jax.Array, "*n C"],
    codebook: Float[jax.Array, "V C"],
    count: int,
    normalize: bool = False,
) -> Int[jax.Array, "*n k"]:
    """The `count` nearest codes of each vector, nearest first; see `nearest_codes`."""
    distances = _distances(vectors, codebook, normalize)
    return jax.lax.top_k(-distances, count)[1].astype(jnp.int32)


def _distances(vectors: jax.Array, codebook: jax.Array, normalize: bool) -> jax.Array:
    """Of each vector to each code, but for what does not change their order."""
    if normalize:
        # The length of a vector does not change which direction is nearest to it.
        codebook = unit(codebook)
        return -jnp.einsum("...c,vc->...v", vectors, codebook, precision=_HIGHEST)
    # |x|^2 is the same for all codes; leaving it out also loses fewer digits.
    dot = jnp.einsum("...c,vc->...v", vectors, codebook, precision=_HIGHEST)
    return jnp.sum(jnp.square(codebook), -1) - 2 * dot


def unit(vectors: Float[jax.Array, "*n C"]) -> Float[jax.Array, "*n C"]:
    """Vectors over their length, as torch.nn.functional.normalize."""
    norm = jnp.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / jnp.maximum(norm, 1e-12)


class Codebook(nn.Module):
    """V vectors, its one parameter 'codebook'.

    Attributes:
      size: V.
      dim: C.
      normalize: choose codes by direction.
    """

    size: int
    dim: int
    normalize: bool = False

    def setup(self) -> None:
        self.codebook = self.param(
            "codebook",
            nn.with_logical_partitioning(nn.initializers.normal(self.dim**-0.5), (None, None)),
            (self.size, self.dim),
            jnp.float32,
        )

    def choose(self, vectors: Float[jax.Array, "*n C"]) -> Int[jax.Array, "*n"]:
        """Vectors -> codes; no gradient reaches the codebook."""
        return nearest_codes(vectors, jax.lax.stop_gradient(self.codebook), self.normalize)

    def look_up(self, codes: jax.Array) -> Float[jax.Array, "*n C"]:
        """Codes int [...], or distributions over them float [..., V], -> vectors, float32."""
        if jnp.issubdtype(codes.dtype, jnp.integer):
            return self.codebook[codes]
        return jnp.einsum(
            "...v,vc->...c", codes.astype(jnp.float32), self.codebook, precision=_HIGHEST
        )
