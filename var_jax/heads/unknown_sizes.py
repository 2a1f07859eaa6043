"""Levels of sizes that training has not seen are drawn with care (FlexVAR, arXiv 2502.20313)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Float

from var_jax.pyramid import ScalePyramid


@dataclasses.dataclass(frozen=True)
class GreedyAtUnknownSizes:
    """At levels that are no square of a known side, only the most likely code is left.

    Attributes:
      sides: those known.
    """

    sides: tuple[int, ...]

    def __call__(
        self, logits: Float[jax.Array, "B n V"], level: int, pyramid: ScalePyramid
    ) -> Float[jax.Array, "B n V"]:
        height, width = pyramid.shapes[level]
        if height == width and height in self.sides:
            return logits
        best = jax.nn.one_hot(logits.argmax(-1), logits.shape[-1], dtype=bool)
        return jnp.where(best, logits, -jnp.inf)
