"""Where a token stands: what is added to its embedding, and how its queries and keys are turned."""

from __future__ import annotations

from typing import Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from var_jax.pyramid import ScalePyramid
from var_jax.transformer.layers import init_std


class Positions(Protocol):
    """A flax module; positions follow from the pyramid that is passed, so that one set of
    parameters may serve several."""

    def added(self, pyramid: ScalePyramid, levels: range) -> Float[jax.Array, "n C"] | None:
        """What is added to the embeddings of the tokens of consecutive levels; None is nothing."""

    def rotate(
        self, x: Float[jax.Array, "B n N H"], pyramid: ScalePyramid, levels: range
    ) -> Float[jax.Array, "B n N H"]:
        """Queries or keys of the tokens of consecutive levels, turned by their positions."""


class LearnedPositions(nn.Module):
    """A vector for each token of one pyramid and one for each level (VAR).

    Attributes:
      pyramid: the longest one; its first levels are served too.
      width: C.
    """

    pyramid: ScalePyramid
    width: int

    def setup(self) -> None:
        init = nn.initializers.normal(init_std(self.width))

        def table(name: str, size: int) -> jax.Array:
            boxed = nn.with_logical_partitioning(init, (name, "embed"))
            return self.param(name, boxed, (size, self.width), jnp.float32)

        self.position = table("position", self.pyramid.length)
        self.level = table("level", self.pyramid.num_levels)

    def added(self, pyramid: ScalePyramid, levels: range) -> Float[jax.Array, "n C"]:
        """Raises ValueError for a pyramid that the tables were not learned for."""
        if not self.pyramid.starts_with(pyramid):
            raise ValueError(
                f"These positions were learned for the levels {self.pyramid.shapes}, not for "
                f"{pyramid.shapes}; positions that follow from coordinates serve any."
            )
        tokens = pyramid.tokens(levels)
        return jnp.take(self.level, pyramid.level_ids[tokens], axis=0) + self.position[tokens]

    @nn.nowrap
    def rotate(
        self, x: Float[jax.Array, "B n N H"], pyramid: ScalePyramid, levels: range
    ) -> Float[jax.Array, "B n N H"]:
        """Nothing is turned."""
        return x
