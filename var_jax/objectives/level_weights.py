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
