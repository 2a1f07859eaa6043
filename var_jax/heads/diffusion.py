"""Diffusion of every token for itself (MAR, arXiv 2406.11838, section 3).

The loss is that of improved diffusion (arXiv 2102.09672, section 3.1): squared error of the noise,
and the variational bound, from which the variance of a step is learned.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from var_jax.fields import Field
from var_jax.heads import diffusion_schedule
from var_jax.heads.base import at_level, mixed
from var_jax.heads.denoiser import Denoiser
from var_jax.heads.diffusion_schedule import NUM_TIMES, Schedule, spaced_times
from var_jax.heads.latents import check_latents, constant_noise
from var_jax.heads.step_annealing import annealed_steps
from var_jax.pyramid import ScalePyramid


@dataclasses.dataclass(frozen=True)
class LevelDiffusion:
    """How one level is drawn; see `DiffusionSampling`.

    Attributes:
      times: of training, ascending; the last comes first.
    """

    level: int
    pyramid: ScalePyramid
    times: tuple[int, ...]
    temperature: float


@dataclasses.dataclass(frozen=True)
class DiffusionSampling:
    """Ancestral steps from noise to latents. A tuple gives one value for each level.

    Attributes:
      num_steps: of a level, 2 or more.
      temperature: factor on the noise that a step adds.
      spacing: of the times, see `spaced_times`.
      latest_time: later times are left out; 950 in DiSA.
      last_num_steps, annealing: with other kinds than 'constant' the steps of a level lie between
        num_steps at the first and last_num_steps at the last; see `annealed_steps`.
    """

    num_steps: int | tuple[int, ...] = 100
    temperature: float | tuple[float, ...] = 1.0
    spacing: str = "even"
    latest_time: int = NUM_TIMES - 1
    last_num_steps: int | None = None
    annealing: str = "constant"

    def at(self, level: int, pyramid: ScalePyramid) -> LevelDiffusion:
        """The settings of one level.

        Raises:
          ValueError: a tuple of another length than K, or what `spaced_times` refuses.
        """
        steps = annealed_steps(self.num_steps, self.last_num_steps, self.annealing, level, pyramid)
        times = spaced_times(steps, self.spacing, self.latest_time)
        temperature = at_level(self.temperature, "temperature", level, pyramid)
        return LevelDiffusion(level, pyramid, times, temperature)


class DiffusionHead(nn.Module):
    """A small network that denoises each token alone, given the transformer's hidden state.

    In training each token of each example has its own times and noise. In evaluation nothing is
    drawn: the loss is the mean over `evaluation_times` times, the middles of equal parts of all of
    them, and the noise of a token is a constant of its position and the time.

    Attributes:
      target: a vector of floats of about unit variance.
      width: C, of the hidden states.
      net_width, net_depth: see `Denoiser`.
      repeats: times and noises drawn for each token of a training step, which the transformer
        computes once.
      evaluation_times: see above.
      dtype: type of the network's computation; latents are float32.
    """

    sampling: ClassVar[type] = DiffusionSampling
    has_likelihood: ClassVar[bool] = False

    target: Field
    width: int
    net_width: int
    net_depth: int
    repeats: int = 4
    evaluation_times: int = 8
    dtype: jnp.dtype = jnp.float32

    def __post_init__(self) -> None:
        super().__post_init__()
        check_latents(self.target, "A diffusion head")
        if min(self.repeats, self.evaluation_times) < 1:
            raise ValueError(
                f"repeats is {self.repeats} and evaluation_times {self.evaluation_times}; both "
                "must be at least 1."
            )

    def setup(self) -> None:
        self.denoiser = self._network()

    @nn.nowrap
    def _network(self, **parent) -> Denoiser:
        (channels,) = self.target.shape
        return Denoiser(channels, self.net_width, self.net_depth, self.dtype, **parent)

    def __call__(self, hidden: Float[jax.Array, "B n C"]) -> Float[jax.Array, "B n c"]:
        """The noise in no latents at the first time."""
        latents = jnp.zeros((*hidden.shape[:2], *self.target.shape))
        return self.denoiser(latents, jnp.zeros(hidden.shape[:2], jnp.int32), hidden)[0]

    def loss(
        self,
        hidden: Float[jax.Array, "B n C"],
        target: Float[jax.Array, "B n c"],
        keys: jax.Array | None,
        pyramid: ScalePyramid,
    ) -> tuple[Float[jax.Array, "B n"], dict[str, Float[jax.Array, "B n"]]]:
        """See `Head` and the class.

        Returns:
          What is minimised; and it as 'loss', its part 'error', the squared error of the noise, and
          the rest, 'bound', in bits for each number of a latent.
        """
        batch, length = target.shape[:2]
        count = self.evaluation_times if keys is None else self.repeats
        shape = (count, length, *self.target.shape)
        if keys is None:
            middles = ((jnp.arange(count) + 0.5) * NUM_TIMES / count).astype(jnp.int32)
            times = jnp.broadcast_to(middles[:, None], (batch, *shape[:2]))
            fixed = jnp.stack([constant_noise(i, shape[1:]) for i in range(count)])
            noise = jnp.broadcast_to(fixed, (batch, *shape))
        else:

            def draw(key):
                time_key, noise_key = jax.random.split(key)
                times = jax.random.randint(time_key, shape[:2], 0, NUM_TIMES)
                return times, jax.random.normal(noise_key, shape)

            times, noise = jax.vmap(draw)(keys)
        # All draws of a token along the axis of tokens, which no mesh cuts.
        error, bound = self.terms(
            jnp.tile(hidden, (1, count, 1)),
            jnp.tile(target, (1, count, 1)),
            times.reshape(batch, -1),
            noise.reshape(batch, -1, *self.target.shape),
        )
        error, bound = (x.reshape(batch, count, length).mean(1) for x in (error, bound))
        return error + bound, {"loss": error + bound, "error": error, "bound": bound}

    def terms(
        self,
        hidden: Float[jax.Array, "B n C"],
        target: Float[jax.Array, "B n c"],
        times: Int[jax.Array, "B n"],
        noise: Float[jax.Array, "B n c"],
    ) -> tuple[Float[jax.Array, "B n"], Float[jax.Array, "B n"]]:
        """Squared error and variational bound at given times and noise, means over channels.

        The bound's gradient reaches the variance alone. It is in bits: a divergence, or at time 0
        the negative log likelihood in cells of 2 / 255, as for pixels in [-1, 1].
        """
        steps = _on_device(diffusion_schedule.schedule())
        at = {name: x[times][..., None] for name, x in steps.items()}
        noisy = at["data_scale"] * target + at["noise_scale"] * noise
        found, spread = self.denoiser(noisy, times, hidden)
        error = jnp.square(found - noise).mean(-1)
        mean, log_variance = _step(at, noisy, jax.lax.stop_gradient(found), spread)
        wanted = at["data_factor"] * target + at["latents_factor"] * noisy
        divergence = _divergence(wanted, at["least_log_variance"], mean, log_variance)
        first = -_log_cell(target, mean, log_variance / 2)
        bound = jnp.where(times[..., None] == 0, first, divergence).mean(-1) / math.log(2)
        return error, bound

    def sample(
        self,
        hiddens: tuple[Float[jax.Array, "B n C"], ...],
        weights: tuple[float, ...],
        keys: jax.Array,
        settings: LevelDiffusion,
    ) -> tuple[Float[jax.Array, "B n c"], Float[jax.Array, "B n c"]]:
        """Draws one level; guidance mixes the predicted noise: (1 + t) cond - t uncond."""
        shape = (settings.pyramid.sizes[settings.level], *self.target.shape)

        def noise(step):
            at_step = jax.vmap(jax.random.fold_in, (0, None))(keys, step)
            return jax.vmap(lambda key: jax.random.normal(key, shape))(at_step)

        latents = self.denoise(noise, hiddens, weights, settings)
        return latents, latents

    def denoise(
        self,
        noise: Callable[[int | jax.Array], Float[jax.Array, "B n c"]],
        hiddens: tuple[Float[jax.Array, "B n C"], ...],
        weights: tuple[float, ...],
        settings: LevelDiffusion,
    ) -> Float[jax.Array, "B n c"]:
        """Ancestral steps.

        Args:
          noise: normal, that the step of this number adds; the number of steps begins. Step i goes
            from time i of the settings to the one before.
          hiddens, weights, settings: see `sample`. The variance of a step is the first state's.
        """
        net, variables = self.denoiser.unbind()

        def predict(x, time):
            times = jnp.full(x.shape[:2], time)
            found = [net.apply(variables, x, times, hidden) for hidden in hiddens]
            return mixed(tuple(eps for eps, _ in found), weights), found[0][1]

        return ancestral(predict, noise, settings)

    @nn.nowrap
    def flops(self, tokens: int) -> float:
        """See `Head`; for one time."""
        return self._network(parent=None).flops(tokens, self.width)


def ancestral(
    predict: Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]],
    noise: Callable[[int | jax.Array], Float[jax.Array, "B n c"]],
    settings: LevelDiffusion,
) -> Float[jax.Array, "B n c"]:
    """Steps from noise to latents, each drawn from what a network says of the time before.

    Args:
      predict: (latents, time) -> the noise in them and where the variance lies, see `Denoiser`.
      noise, settings: see `DiffusionHead.denoise`.
    """
    steps = diffusion_schedule.schedule(settings.times)
    count = len(steps.times)
    rows = {**_on_device(steps), "time": jnp.asarray(steps.times), "step": jnp.arange(count)}

    def step(x, at):
        mean, log_variance = _step(at, x, *predict(x, at["time"]))
        added = settings.temperature * jnp.exp(log_variance / 2) * noise(at["step"])
        return mean + jnp.where(at["step"] > 0, added, 0.0), None

    return jax.lax.scan(step, noise(count), rows, reverse=True)[0]


def _on_device(schedule: Schedule) -> dict[str, jax.Array]:
    """What a step computes with, float32 [S] each."""
    names = (
        *("data_scale", "noise_scale", "data_factor", "latents_factor"),
        *("least_log_variance", "largest_log_variance"),
    )
    return {name: jnp.asarray(getattr(schedule, name), jnp.float32) for name in names}


def _step(
    at: dict[str, jax.Array], latents: jax.Array, eps: jax.Array, spread: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Mean and logarithm of the variance of the time before.

    Args:
      at: `_on_device` at the time of each number.
      latents: of this time.
      eps, spread: see `Denoiser`.
    """
    data = (latents - at["noise_scale"] * eps) / at["data_scale"]
    mean = at["data_factor"] * data + at["latents_factor"] * latents
    share = (spread + 1) / 2
    least, largest = at["least_log_variance"], at["largest_log_variance"]
    return mean, share * largest + (1 - share) * least


def _divergence(
    mean1: jax.Array, log_variance1: jax.Array, mean2: jax.Array, log_variance2: jax.Array
) -> jax.Array:
    """Kullback-Leibler divergence of the first normal distribution from the second, in nats."""
    difference = log_variance1 - log_variance2
    square = jnp.square(mean1 - mean2) * jnp.exp(-log_variance2)
    return 0.5 * (jnp.exp(difference) - 1 - difference + square)


def _log_cell(x: jax.Array, mean: jax.Array, log_std: jax.Array) -> jax.Array:
    """Logarithm of the probability of the cell of 2 / 255 around x; those at -1 and 1 are open.

    The distribution function is approximated by a hyperbolic tangent, as officially.
    """

    def below(edge):
        y = (edge - mean) * jnp.exp(-log_std)
        return 0.5 * (1 + jnp.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)))

    def log(p):
        return jnp.log(jnp.maximum(p, 1e-12))

    upper, lower = below(x + 1 / 255), below(x - 1 / 255)
    inside = jnp.where(x > 0.999, log(1 - lower), log(upper - lower))
    return jnp.where(x < -0.999, log(upper), inside)
