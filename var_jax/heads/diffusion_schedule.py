"""The noise of a discrete diffusion and what its steps compute with (DDPM, arXiv 2006.11239).

Latents at time t are sqrt(a_t) x + sqrt(1 - a_t) eps, with a_t falling along a cosine over 1000
times 0 .. 999 (arXiv 2102.09672, equation 17).
"""

from __future__ import annotations

import dataclasses
import functools
import itertools

import numpy as np

#: T, of training.
NUM_TIMES = 1000
#: How the times of fewer steps are chosen.
SPACINGS = ("even", "stride")


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A diffusion over some of the times. All arrays are float64, by time, least noise first.

    Attributes:
      times: int64 [S], of training; what a network is told.
      kept: a, share of the variance that is the data's.
      kept_before: a of the time before; 1 before the first.
    """

    times: np.ndarray
    kept: np.ndarray
    kept_before: np.ndarray

    @property
    def data_scale(self) -> np.ndarray:
        """Of x in the latents."""
        return np.sqrt(self.kept)

    @property
    def noise_scale(self) -> np.ndarray:
        """Of the noise in the latents."""
        return np.sqrt(1 - self.kept)

    @property
    def betas(self) -> np.ndarray:
        """Variance of the noise that a step adds, relative to the time before."""
        return 1 - self.kept / self.kept_before

    @property
    def data_factor(self) -> np.ndarray:
        """Of x in the mean of the time before, given x and the latents."""
        return self.betas * np.sqrt(self.kept_before) / (1 - self.kept)

    @property
    def latents_factor(self) -> np.ndarray:
        """Of the latents in that mean."""
        return (1 - self.kept_before) * np.sqrt(self.kept / self.kept_before) / (1 - self.kept)

    @property
    def least_log_variance(self) -> np.ndarray:
        """Logarithm of the variance around that mean; at the first time, where it is 0, that of the
        second."""
        variance = self.betas * (1 - self.kept_before) / (1 - self.kept)
        return np.log(np.append(variance[1:2], variance[1:]))

    @property
    def largest_log_variance(self) -> np.ndarray:
        """That of a step whose x is not known: of `betas`."""
        return np.log(self.betas)


@functools.cache
def cosine_kept() -> np.ndarray:
    """a of all 1000 times."""
    t = np.arange(NUM_TIMES + 1) / NUM_TIMES
    bar = np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.cumprod(1 - np.minimum(1 - bar[1:] / bar[:-1], 0.999))


def schedule(times: tuple[int, ...] | None = None) -> Schedule:
    """The diffusion over times of training, ascending; None is all of them."""
    chosen = np.arange(NUM_TIMES) if times is None else np.array(times)
    kept = cosine_kept()[chosen]
    return Schedule(chosen, kept, np.append(1.0, kept[:-1]))


def spaced_times(
    num_steps: int, spacing: str = "even", latest: int = NUM_TIMES - 1
) -> tuple[int, ...]:
    """Times of fewer steps, ascending; maybe fewer than num_steps, where `latest` cuts some off.

    Args:
      num_steps: 2 or more.
      spacing: 'even', from 0 to 999 with both; or 'stride', multiples of a whole number, as 'ddimN'
        officially.
      latest: later times are this one.

    Raises:
      ValueError: too few steps, an unknown spacing, or no stride that gives so many.
    """
    if spacing not in SPACINGS:
        raise ValueError(f"spacing is {spacing!r}; choose one of {', '.join(SPACINGS)}.")
    if not 2 <= num_steps <= NUM_TIMES or not 0 < latest < NUM_TIMES:
        raise ValueError(
            f"num_steps is {num_steps} and latest_time {latest}; give 2 to {NUM_TIMES} steps, and "
            f"a time from 1 to {NUM_TIMES - 1}."
        )
    if spacing == "stride":
        strides = (s for s in range(1, NUM_TIMES) if len(range(0, NUM_TIMES, s)) == num_steps)
        stride = next(strides, None)
        if stride is None:
            raise ValueError(
                f"No whole stride cuts {NUM_TIMES} times into {num_steps}; take another num_steps, "
                "or spacing 'even'."
            )
        found = range(0, NUM_TIMES, stride)
    else:
        stride = (NUM_TIMES - 1) / (num_steps - 1)
        # Summed up as officially: where a sum ends in a half, rounding errors decide.
        found = map(round, itertools.accumulate([stride] * (num_steps - 1), initial=0.0))
    return tuple(sorted({min(t, latest) for t in found}))
