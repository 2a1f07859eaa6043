"""Classifier-free guidance: how strongly each level is guided.

The weight t of a level mixes logits as (1 + t) * cond - t * uncond; t = 0 is no guidance.
"""

from __future__ import annotations

import dataclasses
from typing import Protocol, runtime_checkable

import jax
from jaxtyping import Float

from var_jax.pyramid import ScalePyramid


class Guidance(Protocol):
    """A hashable rule that gives each level its weight."""

    def weight(self, level: int, pyramid: ScalePyramid) -> float:
        """t of a level of the pyramid that is drawn."""


@runtime_checkable
class LooksBack(Guidance, Protocol):
    """A guidance that also steers away from what the level before would have been drawn from.

    With the level's own mix l and that of the level before, carried over to this one, l0, the draw
    is from (1 + beta) l - beta l0. Both are hidden states before the head; where the head is affine,
    as for codes and bits, mixing them is mixing logits.
    """

    def strength(self, level: int, pyramid: ScalePyramid) -> float:
        """beta of a level; 0 is as without."""

    def carried(
        self, before: Float[jax.Array, "B m C"], level: int, pyramid: ScalePyramid
    ) -> Float[jax.Array, "B n C"]:
        """The mix of level - 1 on the tokens of a level; a linear map that keeps constants."""


def weights_of(guidance: Guidance, pyramid: ScalePyramid) -> list[float]:
    """t of all levels."""
    return [guidance.weight(k, pyramid) for k in range(pyramid.num_levels)]


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

    cfg: tuple[float, ...]

    def weight(self, level: int, pyramid: ScalePyramid) -> float:
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
