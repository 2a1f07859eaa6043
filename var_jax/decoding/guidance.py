"""Classifier-free guidance: how strongly each level is guided.

The weight t of a level mixes logits as (1 + t) * cond - t * uncond; t = 0 is no guidance.
Inside a compiled program it may be a scalar array: the program then serves all weights.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import jax
from jaxtyping import Float

from var_jax.pyramid import ScalePyramid


class Guidance(Protocol):
    """A hashable rule that gives each level its weight."""

    def weight(self, level: int, pyramid: ScalePyramid) -> float | jax.Array:
        """t of a level of the pyramid that is drawn."""


@runtime_checkable
class LooksBack(Guidance, Protocol):
    """A guidance that also steers away from what the level before would have been drawn from.

    With the level's own mix l and that of the level before, carried over to this one, l0, the draw
    is from (1 + beta) l - beta l0. What is carried over are hidden states; for a head that is
    affine, as those of codes and of bits, this is the same as carrying over its logits.
    """

    def strength(self, level: int, pyramid: ScalePyramid) -> float:
        """beta of a level; 0 is as without."""

    def carried(
        self, before: Float[jax.Array, "B m C"], level: int, pyramid: ScalePyramid
    ) -> Float[jax.Array, "B n C"]:
        """The mix of level - 1 on the tokens of a level; a linear map that keeps constants."""


@runtime_checkable
class InsideNetwork(Guidance, Protocol):
    """A guidance that mixes what blocks have made of the tokens, in place of logits.

    From there on both halves go on as the mix, each with its own condition; the draw is from the
    logits of the conditional half.
    """

    def mixed_after(self, depth: int) -> tuple[int, ...]:
        """Numbers of the blocks, of `depth`, behind which the halves are mixed, ascending."""


def weights_of(guidance: Guidance, pyramid: ScalePyramid) -> list[float | jax.Array]:
    """t of all levels."""
    return [guidance.weight(k, pyramid) for k in range(pyramid.num_levels)]


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


@dataclasses.dataclass(frozen=True)
class IntervalGuidance:
    """A rule at the levels of an interval, and no guidance at the others.

    Without guidance after it, the unconditional half of the passes ends with the interval
    (Kynkäänniemi et al., arXiv 2404.07724, whose interval is of noise levels).

    Attributes:
      rule: of the interval.
      first, last: levels, both included; -1 is the pyramid's last.
    """

    rule: Guidance
    first: int = 0
    last: int = -1

    def weight(self, level: int, pyramid: ScalePyramid) -> float:
        count = pyramid.num_levels
        last = count - 1 if self.last == -1 else self.last
        if not 0 <= self.first <= last < count:
            raise ValueError(
                f"The interval of guidance is {self.first}..{self.last}, but the pyramid's levels "
                f"are 0..{count - 1}; choose two of them in order."
            )
        return self.rule.weight(level, pyramid) if self.first <= level <= last else 0.0


@dataclasses.dataclass(frozen=True)
class LayerGuidance:
    """A rule whose weights mix what blocks return (`cfg_insertion_layer` of Infinity's code).

    Attributes:
      rule: of the weights.
      after: numbers of blocks from 0, or from the end below 0, such as (-5,).
    """

    rule: Guidance
    after: tuple[int, ...] = (-5,)

    def weight(self, level: int, pyramid: ScalePyramid) -> float | jax.Array:
        return self.rule.weight(level, pyramid)

    def mixed_after(self, depth: int) -> tuple[int, ...]:
        found = tuple(sorted({n + depth if n < 0 else n for n in self.after}))
        if not found or found[0] < 0 or found[-1] >= depth:
            raise ValueError(
                f"Guidance mixes after the blocks {self.after}, but the model has {depth}; give "
                f"some of 0..{depth - 1}, or of -{depth}..-1 from the end."
            )
        return found
