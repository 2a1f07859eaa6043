"""Coarse levels together, each fine one alone, in turn (MVAR, arXiv 2505.12742)."""

from __future__ import annotations

import dataclasses

from var_jax.context import Context
from var_jax.objectives.curriculum import TrainedLevels
from var_jax.pyramid import ScalePyramid


@dataclasses.dataclass(frozen=True)
class LevelCycle:
    """A step trains the levels before `first`, or one of the others; for levels that see themselves
    alone.

    A cycle is `repeats` steps of the first kind, then one for each level from `first` on. A token
    weighs in its step what it weighs among all, so that one step of each kind adds up to a plain
    one, and a step takes the memory of its own levels only.

    Attributes:
      pyramid, context: of the model.
      first: the first level that trains alone.
      repeats: see above.

    Raises:
      ValueError: first or repeats out of range; a level that would train alone sees others.
    """

    pyramid: ScalePyramid
    context: Context
    first: int
    repeats: int = 8

    def __post_init__(self) -> None:
        count = self.pyramid.num_levels
        if not 0 < self.first <= count or self.repeats < 1:
            raise ValueError(
                f"A cycle needs first in 1..{count} and repeats of 1 or more, got {self.first} and "
                f"{self.repeats}."
            )
        for k in range(self.first, count):
            if self.context.window(k) != (k, k):
                raise ValueError(
                    f"Level {k} sees the levels {self.context.window(k)}, so it cannot train alone "
                    f"(first is {self.first}); choose a context in which it sees itself only, such "
                    "as own_scale, and no mixer."
                )

    def at(self, step: int) -> TrainedLevels:
        place = step % (self.repeats + self.pyramid.num_levels - self.first)
        alone = self.first + place - self.repeats
        levels = range(self.first) if place < self.repeats else range(alone, alone + 1)
        return TrainedLevels(self.pyramid, levels=levels)
