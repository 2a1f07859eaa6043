"""Which tokens an edit keeps: VAR's rule, one that fits better, and one that needs no mask."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from var_jax.decoding.editing import Rule, Step
from var_jax.resample import apply_matrices, resize


def as_drawn(
    rule: Rule,
    drawn: Float[jax.Array, "B h w C"],
    encoded: Float[jax.Array, "B h w C"],
    keep: Float[jax.Array, "B h w"],
) -> Float[jax.Array, "B h w C"]:
    """`Rule.finish` of rules that decode what came out."""
    return drawn


@dataclasses.dataclass(frozen=True)
class Forced:
    """The picture's own tokens wherever the mask keeps (VAR's demo of zero-shot editing).

    The mask of a level is that of the grid, resized (bilinear), above one half. Levels of fewer
    than four tokens are the picture's whatever the mask says. The tokens are residuals of a sum
    that is no longer the picture's once others are drawn, so what is kept drifts, and seams show.
    """

    compares: ClassVar[bool] = False

    def settle(self, step: Step) -> tuple[jax.Array, Bool[jax.Array, "B n"]]:
        """See `Rule`."""
        shape = step.pyramid.shapes[step.level]
        grid = (step.source.keep > 0.5).astype(jnp.float32)
        kept = resize(grid[..., None], shape, "bilinear") > 0.5
        if shape[0] * shape[1] <= 3:
            kept = jnp.ones_like(kept)
        return step.encoded, kept.reshape(len(kept), -1)

    finish = as_drawn


@dataclasses.dataclass(frozen=True)
class Refit:
    """Tokens that bring what has been drawn so far back to the picture where the mask keeps.

    A level's kept tokens are encoded anew, from the picture less the sum of the levels before as
    they were really drawn, each cell by its share that stays. So a coarse token that was drawn for
    the new part is made up for by the next levels, in the kept part alone. At last the kept cells
    are those that the picture's own tokens give, exactly, and what is left of a difference fades
    out into the new part.

    Attributes:
      cover: a token is kept if at least this share of its cells stays, in (0, 1]. With less than 1,
        coarse tokens of what is kept alone stand for the new part too.
      feather: cells over which a difference fades out; 0 ends it at the border.
    """

    compares: ClassVar[bool] = False

    cover: float = 1.0
    feather: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.cover <= 1:
            raise ValueError(f"cover is a share in (0, 1], got {self.cover}.")
        if self.feather < 0:
            raise ValueError(f"feather is a number of cells, 0 or more, got {self.feather}.")

    def settle(self, step: Step) -> tuple[jax.Array, Bool[jax.Array, "B n"]]:
        """See `Rule`."""
        keep = step.source.keep
        share = resize(keep[..., None], step.pyramid.shapes[step.level], "area")
        kept = share.reshape(len(share), -1) > self.cover - 1e-6
        return step.nearest(keep), kept

    def finish(
        self,
        drawn: Float[jax.Array, "B h w C"],
        encoded: Float[jax.Array, "B h w C"],
        keep: Float[jax.Array, "B h w"],
    ) -> Float[jax.Array, "B h w C"]:
        """See the class."""
        return blend(drawn, encoded, keep, self.feather)


@dataclasses.dataclass(frozen=True)
class Relabel:
    """Tokens that speak for what the picture shows are drawn anew, all others stay (AREdit).

    A token of the picture is drawn if it is likelier under what the picture shows than under what
    is asked for, by more than `margin`; the first is its probability after the picture's own
    coarser levels, the second after those of the result (arXiv 2503.23897, with classes in the
    place of texts). It finds the place of an edit by itself, or inside a mask.

    Attributes:
      margin: difference of the two probabilities, in [0, 1].
      copied: so many levels, from the first, are the picture's.
    """

    compares: ClassVar[bool] = True

    margin: float = 0.2
    copied: int = 2

    def settle(self, step: Step) -> tuple[jax.Array, Bool[jax.Array, "B n"]]:
        """See `Rule`."""
        own = jnp.exp(-step.shown_surprise) - jnp.exp(-step.surprise(step.encoded))
        share = resize(step.source.keep[..., None], step.pyramid.shapes[step.level], "area")
        kept = (own <= self.margin) | (share.reshape(own.shape) > 0.5)
        return step.encoded, jnp.full_like(kept, True) if step.level < self.copied else kept

    finish = as_drawn


def blend(
    made: Float[jax.Array, "B h w C"],
    wanted: Float[jax.Array, "B h w C"],
    keep: Float[jax.Array, "B h w"],
    feather: float,
) -> Float[jax.Array, "B h w C"]:
    """`wanted` where it is kept whole; elsewhere `made`, and the difference of kept cells nearby.

    Nothing of `wanted` shows where it is not kept: the difference is a mean over kept cells by a
    normal distribution of their distance, and fades out with the share of them.

    Args:
      made, wanted: maps.
      keep: in [0, 1], 1 is `wanted` exactly.
      feather: deviation of the distribution in cells.
    """
    kept = keep[..., None]
    if feather:
        rows, columns = (_normal(n, feather) for n in keep.shape[1:])
        difference = apply_matrices(kept * (wanted - made), rows, columns)
        share = apply_matrices(kept, rows, columns)
        # Beside a straight border one half of the cells around are kept.
        fade = jnp.minimum(2 * share / apply_matrices(jnp.ones_like(kept), rows, columns), 1.0)
        made = made + fade * difference / jnp.maximum(share, 1e-6)
    return jnp.where(kept > 1 - 1e-6, wanted, made)


def _normal(size: int, deviation: float) -> np.ndarray:
    """[size, size]: a normal distribution about each cell, not normalised."""
    cells = np.arange(size)
    return np.exp(-0.5 * np.square((cells[:, None] - cells) / deviation))
