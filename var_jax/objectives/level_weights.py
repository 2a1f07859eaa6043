"""How much each token's loss counts, by its level."""

from __future__ import annotations

import dataclasses
from typing import Protocol

import numpy as np

from var_jax.pyramid import ScalePyramid


class LevelWeights(Protocol):
    """A hashable rule."""

    def weights(self, pyramid: ScalePyramid) -> np.ndarray:
        """float64 [L], factors on the tokens' losses before they are added up."""


@dataclasses.dataclass(frozen=True)
class UniformWeights:
    """1 / L for every token: the mean (VAR)."""

    def weights(self, pyramid: ScalePyramid) -> np.ndarray:
        return np.full(pyramid.length, 1 / pyramid.length)


@dataclasses.dataclass(frozen=True)
class AreaWeights:
    """A token counts as the side of its cell, 1 / sqrt(h w) of its level; they sum to 1.

    So coarse levels, which decide what an image shows, do not drown in the many fine tokens
    (Infinity, arXiv 2412.04431).
    """

    def weights(self, pyramid: ScalePyramid) -> np.ndarray:
        side = np.sqrt(np.asarray(pyramid.sizes, np.float64))[pyramid.level_ids]
        return (1 / side) / (1 / side).sum()


@dataclasses.dataclass(frozen=True)
class LogNormalWeights:
    """Bell-shaped over the levels: most for those of middle size, least for the coarsest (HMAR).

    Level k weighs the normal density at the side of level K - 1 - k, with mean and sample deviation
    of all sides; its tokens share that. All weights sum to 1. Of levels of equal size, all are 1/L.
    """

    def weights(self, pyramid: ScalePyramid) -> np.ndarray:
        sizes = np.array(pyramid.sizes)
        sides = np.sqrt(sizes)
        deviation = sides.std(ddof=1) if pyramid.num_levels > 1 else 0.0
        density = np.exp(-np.square((sides[::-1] - sides.mean()) / (deviation or 1.0)) / 2)
        return np.repeat(density / density.sum() / sizes, sizes)


@dataclasses.dataclass(frozen=True)
class LeadingWeights:
    """1 / L for tokens of the first levels, `later` / L for those of the others (ARBooth, arXiv
    2504.02612: what is particular of a thing is in its coarse levels).

    Attributes:
      levels: how many count in full.
      later: factor on the others.
    """

    levels: int = 8
    later: float = 0.5

    def weights(self, pyramid: ScalePyramid) -> np.ndarray:
        factor = np.where(pyramid.level_ids < self.levels, 1.0, self.later)
        return factor / pyramid.length
