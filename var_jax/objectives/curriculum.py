"""Which levels train at which step."""

from __future__ import annotations

import bisect
import dataclasses
from typing import Protocol

from var_jax.pyramid import ScalePyramid


@dataclasses.dataclass(frozen=True)
class TrainedLevels:
    """What a step trains on.

    Attributes:
      pyramid: its levels; a prefix of the model's, or any other one where the codec's levels do not
        depend on each other.
      ramp_start, ramp_steps: the loss of the last level is weighted by
        (step - ramp_start + 1) / ramp_steps, between 0.01 and 1; ramp_steps 0 is no ramp.
      whole: what the pyramid is the beginning of, where its levels weigh as they do there; None:
        they weigh as they do alone.
      levels: consecutive ones of the pyramid that train, where they see none before them; they
        weigh as they do among all. None is all.
    """

    pyramid: ScalePyramid
    ramp_start: int = 0
    ramp_steps: int = 0
    whole: ScalePyramid | None = None
    levels: range | None = None


class Curriculum(Protocol):
    """A hashable choice of levels by step; each of the few distinct ones is compiled once."""

    def at(self, step: int) -> TrainedLevels:
        """What step `step` trains on: a function of the step alone, on every host alike."""


@dataclasses.dataclass(frozen=True)
class Stage:
    """A span of progressive training: steps from `start` train the first `num_levels` levels."""

    start: int
    num_levels: int


def progressive_stages(
    num_levels: int, num_steps: int, warmup_steps: int, until: float, first: int
) -> tuple[Stage, ...]:
    """The stages of the official progressive schedule (`pg`, `pg0`).

    Training begins with the levels 0..first and, from the end of warm-up until the fraction
    `until` of all steps, adds one level at a time.

    Args:
      num_levels: K.
      num_steps: of the whole training.
      warmup_steps: before the first addition.
      until: fraction of training after which all levels train; 0 turns it off.
      first: last level of the first stage.

    Raises:
      ValueError: `until` or `first` out of range.
    """
    if not 0 <= until <= 1:
        raise ValueError(f"progressive.until must be in [0, 1], got {until}.")
    if not until:
        return (Stage(0, num_levels),)
    if not 0 <= first < num_levels:
        raise ValueError(f"progressive.first must be in 0..{num_levels - 1}, got {first}.")
    end = num_steps * until
    stages = []
    for step in range(num_steps):
        if step <= warmup_steps:
            last = first
        elif step >= end:
            last = num_levels - 1
        else:
            progress = min(max((step - warmup_steps) / (end - warmup_steps), 0), 1)
            last = first + round(progress * (num_levels - 1 - first))
        if not stages or stages[-1].num_levels != last + 1:
            stages.append(Stage(step, last + 1))
        if last == num_levels - 1:
            break
    return tuple(stages)


@dataclasses.dataclass(frozen=True)
class Progressive:
    """Coarse levels first, see `progressive_stages`.

    Attributes:
      pyramid: of the model.
      stages: in order; the first starts at step 0.
      ramp_steps: over which the loss of an added level comes in; 0 is at once.
    """

    pyramid: ScalePyramid
    stages: tuple[Stage, ...]
    ramp_steps: int = 0

    def at(self, step: int) -> TrainedLevels:
        index = bisect.bisect_right([stage.start for stage in self.stages], step) - 1
        stage = self.stages[index]
        if stage.num_levels == self.pyramid.num_levels:
            return TrainedLevels(self.pyramid)
        # The first stage needs no ramp: the learning rate warms up there.
        ramp_steps = self.ramp_steps if index else 0
        return TrainedLevels(
            self.pyramid.prefix(stage.num_levels),
            stage.start if ramp_steps else 0,
            ramp_steps,
            self.pyramid,
        )
