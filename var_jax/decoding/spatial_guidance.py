"""Guidance away from the coarser level (SSG, scaled spatial guidance, arXiv 2602.05534).

The logits of a level carry what the level before knew already, and what is new. SSG draws from
l + beta (l - l0), where l0 is the guess of the level before, brought to this one's size, so that
what is new counts more. No further pass is needed: the guess has been computed.

The guess keeps the coarse level's low frequencies exactly and takes the others of a linear
interpolation ("discrete spatial enhancement"): with orthonormal cosine transforms, the low block of
the interpolated map's spectrum is replaced by the spectrum of the coarse map, scaled by the root
of the ratio of the sizes, without which a constant would not stay one. The paper does not say so,
nor where guidance by classes comes in (here before, in both l and l0) or its betas.
"""

from __future__ import annotations

import dataclasses

import jax
from jaxtyping import Float

from var_jax.decoding.guidance import Guidance
from var_jax.heads.base import at_level
from var_jax.pyramid import ScalePyramid
from var_jax.resample import apply_matrices, bilinear_matrix, cosine_matrix


@dataclasses.dataclass(frozen=True)
class SpatialGuidance:
    """Another rule's guidance by classes, and beside it that away from the level before.

    In a decoder with two models, the first level of the second is not steered: what its model made
    of the level before has not been kept.

    Attributes:
      rule: of the weights t.
      beta: strength, 0 or more; a tuple gives one for each level, of which the first is not used.
    """

    rule: Guidance
    beta: float | tuple[float, ...]

    def __post_init__(self) -> None:
        if min(self.beta if isinstance(self.beta, tuple) else (self.beta,), default=0) < 0:
            raise ValueError(
                f"beta of the guidance is {self.beta}; give 0, which is none, or more."
            )

    def weight(self, level: int, pyramid: ScalePyramid) -> float:
        """See `Guidance`."""
        return self.rule.weight(level, pyramid)

    def strength(self, level: int, pyramid: ScalePyramid) -> float:
        """See `LooksBack`."""
        return at_level(self.beta, "beta of the guidance", level, pyramid)

    def carried(
        self, before: Float[jax.Array, "B m C"], level: int, pyramid: ScalePyramid
    ) -> Float[jax.Array, "B n C"]:
        """See `LooksBack`."""
        coarse, fine = pyramid.shapes[level - 1], pyramid.shapes[level]
        x = before.reshape(len(before), *coarse, before.shape[-1])
        return enlarged(x, fine).reshape(len(before), -1, before.shape[-1])


def enlarged(x: Float[jax.Array, "B h w C"], shape: tuple[int, int]) -> jax.Array:
    """A map at a larger shape: its own low frequencies, the others of a linear interpolation.

    Args:
      x: the map.
      shape: (H, W), neither smaller than the map's.

    Returns:
      [B, H, W, C]; x itself if the shape is the same, and a constant for a constant.
    """
    sizes = list(zip(x.shape[1:3], shape, strict=True))
    linear = [bilinear_matrix(small, large) for small, large in sizes]
    own = [cosine_matrix(small, large) for small, large in sizes]
    # The part of a fine map that a coarse one can hold: down and up again.
    low = [
        up @ cosine_matrix(large, small) @ matrix
        for up, matrix, (small, large) in zip(own, linear, sizes, strict=True)
    ]
    return apply_matrices(x, *linear) - apply_matrices(x, *low) + apply_matrices(x, *own)
