"""Integration of a velocity from noise (t = 1) to data (t = 0), and its settings by level.

As an ordinary differential equation, dx = v dt, or as the stochastic one whose states have the same
distributions (SiT, arXiv 2401.08740): with diffusion 2 t, dx = (v - t s) dt + sqrt(2 t) dW, where s
is the score; since s = -(x + (1 - t) v) / t, the drift is (2 - t) v + x.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from var_jax.heads.base import at_level
from var_jax.heads.step_annealing import annealed_steps
from var_jax.pyramid import ScalePyramid

SOLVERS = ("euler", "heun", "euler_maruyama")
#: Where the last step of 'euler_maruyama' begins.
_LAST_NOISY_TIME = 0.04


@dataclasses.dataclass(frozen=True)
class LevelFlow:
    """How one level is integrated; see `FlowSampling`."""

    level: int
    pyramid: ScalePyramid
    num_steps: int
    guidance_interval: float
    uniform: bool
    guidance_from: float
    solver: str

    @property
    def times(self) -> np.ndarray:
        """float64, decreasing from 1 to 0: the ends of the steps."""
        if self.solver == "euler_maruyama":
            return np.append(np.linspace(1, _LAST_NOISY_TIME, self.num_steps), 0)
        if self.uniform:
            return np.linspace(1, 0, self.num_steps + 1)
        half = self.num_steps // 2
        return np.concatenate([np.linspace(1, 0.3, half), np.linspace(0.25, 0, half + 1)])

    @property
    def guided(self) -> np.ndarray:
        """bool, of each step."""
        start = self.times[:-1]
        return (self.guidance_from <= start) & (start <= self.guidance_interval)


@dataclasses.dataclass(frozen=True)
class FlowSampling:
    """Steps from noise to latents. A tuple gives one value for each level.

    Attributes:
      num_steps: of a level.
      guidance_interval: guidance counts in steps that start at times up to this one; 1 is always.
        At noisier times the first hidden state alone counts.
      uniform: steps of equal size. Otherwise, as officially but for 50 steps, half of the steps
        lead from 1 to 0.25 and half from there to 0; an odd number counts as one less. Not read by
        'euler_maruyama'.
      guidance_from: guidance counts in steps that start at this time or a noisier one (interval
        guidance, arXiv 2404.07724).
      solver: 'euler'; 'heun', which looks at both ends of every step but the last; or
        'euler_maruyama', of the stochastic equation, whose equal steps lead to 0.04 and a last one,
        without noise, from there to 0.
      last_num_steps, annealing: with other kinds than 'constant' the steps of a level lie between
        num_steps at the first and last_num_steps at the last; see `annealed_steps`.
    """

    num_steps: int | tuple[int, ...] = 25
    guidance_interval: float | tuple[float, ...] = 0.9
    uniform: bool | tuple[bool, ...] = False
    guidance_from: float | tuple[float, ...] = 0.0
    solver: str | tuple[str, ...] = "euler"
    last_num_steps: int | None = None
    annealing: str = "constant"

    def at(self, level: int, pyramid: ScalePyramid) -> LevelFlow:
        """The settings of one level.

        Raises:
          ValueError: a tuple of another length than K, too few steps, or an unknown name.
        """
        steps = annealed_steps(self.num_steps, self.last_num_steps, self.annealing, level, pyramid)
        names = ("guidance_interval", "uniform", "guidance_from", "solver")
        rest = {name: at_level(getattr(self, name), name, level, pyramid) for name in names}
        least = 1 if rest["uniform"] or rest["solver"] == "euler_maruyama" else 2
        if steps < least:
            raise ValueError(
                f"num_steps of level {level} is {steps}, but with uniform={rest['uniform']} there "
                f"must be {least} at least."
            )
        if rest["solver"] not in SOLVERS:
            raise ValueError(f"solver is {rest['solver']!r}; choose one of {', '.join(SOLVERS)}.")
        return LevelFlow(level, pyramid, steps, **rest)


def solve(
    velocity: Callable[..., jax.Array],
    noise: jax.Array,
    hiddens: tuple[jax.Array, ...],
    weights: tuple[float, ...],
    settings: LevelFlow,
    drawn: Callable[[jax.Array], jax.Array] | None = None,
) -> jax.Array:
    """Integrates over the times of a level.

    Args:
      velocity: (x, time, hiddens, weights) -> velocity.
      noise: x at time 1.
      hiddens, weights: see `Head.sample`; the first alone where guidance does not count.
      settings: of the level.
      drawn: number of a step -> its noise, as x; see `noise_of_steps`. For 'euler_maruyama'.

    Returns:
      x at time 0.
    """
    times, stochastic = settings.times, settings.solver == "euler_maruyama"
    steps = np.stack([times[:-1], np.diff(times), times[1:]], 1).astype(np.float32)
    spread = np.sqrt(-2 * times[:-1] * np.diff(times)).astype(np.float32)
    spread[-1] = 0
    guided = settings.guided & (len(weights) > 1)
    # At time 0, where the last step ends, a network has learned least.
    second_order = np.arange(len(steps)) < (len(steps) - 1) * (settings.solver == "heun")

    def run(x, chosen, guides, heun):
        mix = (hiddens, weights) if guides else (hiddens[:1], (1.0,))

        def step(x, row):
            number, (time, size, end), noise_size = row
            slope = velocity(x, time, *mix)
            if heun:
                slope = (slope + velocity(x + size * slope, end, *mix)) / 2
            if not stochastic:
                return x + size * slope, None
            drift = (2 - time) * slope + x
            return x + size * drift + noise_size * drawn(number), None

        rows = (chosen, steps[chosen], spread[chosen])
        return jax.lax.scan(step, x, jax.tree.map(jnp.asarray, rows))[0]

    x = noise
    kinds = list(zip(guided.tolist(), second_order.tolist(), strict=True))
    # A loop for each run of steps of one kind.
    for kind, run_of in itertools.groupby(range(len(steps)), key=kinds.__getitem__):
        x = run(x, np.array(list(run_of)), *kind)
    return x


def noise_of_steps(keys: jax.Array, shape: tuple[int, ...]) -> Callable[[jax.Array], jax.Array]:
    """Number of a step -> normal noise of that shape for each example, by its key of keys [B]."""

    def drawn(number: jax.Array) -> jax.Array:
        own = jax.vmap(jax.random.fold_in, (0, None))(keys, number)
        return jax.vmap(lambda key: jax.random.normal(key, shape))(own)

    return drawn
