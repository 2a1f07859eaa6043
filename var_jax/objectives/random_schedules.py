"""Another pyramid at each step, so that one model serves many (FlexVAR, arXiv 2502.20313)."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from var_jax.objectives.curriculum import TrainedLevels
from var_jax.pyramid import ScalePyramid


@dataclasses.dataclass(frozen=True)
class RandomSchedules:
    """A step trains on the model's own pyramid or on one of few that were drawn before.

    They are the first `num_draws` of the paper's sampler, which draws at every step: each program
    is compiled once. A draw begins with the model's first two sides, ends with its last and has
    sides from `ranges` between. Some lose levels between, see `drops`. While there are more tokens
    than the model's own pyramid has, one of the last four levels goes.

    Attributes:
      pyramid: of the model, of squares.
      seed: of the draws, and with the step of what it trains on, alike on every host.
      num_draws: equal ones are one program.
      ranges: (count, lowest, highest): so many distinct sides from lowest to highest.
      drops: with probability 1 - x a draw loses one more level, for each x.
      own_share: probability of the model's own pyramid.

    Raises:
      ValueError: a range has too few sides or is not between the first two sides and the last.
    """

    pyramid: ScalePyramid
    seed: int = 0
    num_draws: int = 16
    ranges: tuple[tuple[int, ...], ...] = ((5, 3, 10), (2, 11, 15))
    drops: tuple[float, ...] = (0.9, 0.95, 0.98, 0.99)
    own_share: float = 0.05

    def __post_init__(self) -> None:
        own, below = self.pyramid.patch_nums, self.pyramid.patch_nums[:2][-1]
        for count, lowest, highest in self.ranges:
            if not below < lowest <= highest < own[-1] or count > highest - lowest + 1:
                raise ValueError(
                    f"ranges has {count} sides from {lowest} to {highest}; give no more than there "
                    f"are, between {below} and {own[-1]} of the model's {own}."
                )
            below = highest

    @functools.cached_property
    def draws(self) -> tuple[ScalePyramid, ...]:
        """What steps choose from, beside the model's own."""
        rng = np.random.default_rng([self.seed])
        return tuple(self._draw(rng) for _ in range(self.num_draws))

    def at(self, step: int) -> TrainedLevels:
        rng = np.random.default_rng([self.seed, step])
        if not self.draws or rng.random() < self.own_share:
            return TrainedLevels(self.pyramid)
        return TrainedLevels(self.draws[rng.integers(len(self.draws))])

    def _draw(self, rng: np.random.Generator) -> ScalePyramid:
        own = self.pyramid.patch_nums
        sides = list(own[:2])
        for count, lowest, highest in self.ranges:
            sides += sorted(rng.choice(np.arange(lowest, highest + 1), count, replace=False))
        sides.append(own[-1])
        # One number for all thresholds: who passes the last has passed them all.
        chance = rng.random()
        for threshold in self.drops:
            if chance > threshold and len(sides) > 3:
                del sides[rng.integers(2, len(sides) - 1)]
        while sum(side**2 for side in sides) > self.pyramid.length:
            del sides[rng.integers(max(2, len(sides) - 4), len(sides))]
        return ScalePyramid.from_patch_nums(sides, self.pyramid.grid)
