"""Classifier-free guidance: how strongly each level is guided.

The weight t of a level mixes logits as (1 + t) * cond - t * uncond; t = 0 is no guidance.
Inside a compiled program it may be a scalar array: the program then serves all weights.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import jax

from var_jax.pyramid import ScalePyramid


class Guidance(Protocol):
    """A hashable rule that gives each level its weight."""

    def weight(self, level: int, pyramid: ScalePyramid) -> float | jax.Array:
        """t of a level of the pyramid that is drawn."""


def is_guided(weights: Sequence[float | jax.Array]) -> bool:
    """Whether any of the weights is, or as an array may be, other than 0."""
    return any(isinstance(t, jax.Array) or t != 0 for t in weights)


@dataclasses.dataclass(frozen=True)
class LinearGuidance:
    """t = cfg * k / (K - 1): level 0 is never guided, the last by cfg (official VAR)."""

    cfg: float

    def weight(self, level: int, pyramid: ScalePyramid) -> float:
        last = pyramid.num_levels - 1
        return self.cfg * level / last if last else 0.0


@dataclasses.dataclass(frozen=True)
class ConstantGuidance:
    """The same t at every level."""

    cfg: float

    def weight(self, level: int, pyramid: ScalePyramid) -> float:
        return self.cfg


@dataclasses.dataclass(frozen=True)
class PerLevelGuidance:
    """A weight for each level."""

    cfg: tuple[float | jax.Array, ...]

    def weight(self, level: int, pyramid: ScalePyramid) -> float | jax.Array:
        if len(self.cfg) != pyramid.num_levels:
            raise ValueError(
                f"cfg has {len(self.cfg)} weights, but the pyramid has {pyramid.num_levels} "
                "levels; give one weight for each level, or a single number."
            )
        return self.cfg[level]


@dataclasses.dataclass(frozen=True)
class TenStepGuidance:
    """t = cfg * k / min(K - 1, 9): after ten levels it grows on above cfg (FlexVAR).

    Attributes:
      cfg: strength.
      max_side: levels of a larger side, which training has not seen, are guided by cfg itself.
    """

    cfg: float
    max_side: int = 16

    def weight(self, level: int, pyramid: ScalePyramid) -> float:
        if max(pyramid.shapes[level]) > self.max_side:
            return self.cfg
        return self.cfg * level / min(max(pyramid.num_levels - 1, 1), 9)
