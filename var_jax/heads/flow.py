"""Flow matching on the latents of a level, all its tokens together (FlowAR, arXiv 2412.15205).

Data x and noise eps are joined by x_t = (1 - t) x + t eps; what is learned is the velocity
eps - x, and sampling integrates it from noise (t = 1) to data (t = 0).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from var_jax.fields import Field
from var_jax.heads.base import mixed
from var_jax.heads.latents import check_latents, constant_noise, logit_normal
from var_jax.heads.ode import FlowSampling, LevelFlow, noise_of_steps, solve
from var_jax.heads.velocity import VelocityNet
from var_jax.pyramid import ScalePyramid
from var_jax.transformer.layers import by_token

#: Width of an attention head where no number of heads is given.
_HEAD_DIM = 64


class FlowHead(nn.Module):
    """A velocity network over the tokens of one level, given the transformer's hidden states.

    The loss of a token is the squared error of its velocity, averaged over channels. In training
    each level of each example has one time. In evaluation nothing is drawn: the loss is the mean
    over `evaluation_times` times, the medians of equal parts of their distribution, and the noise
    of a token is a constant of its position and the time, the same for all examples.

    Attributes:
      pyramid: of the tokens.
      target: a vector of floats.
      width: C, of the hidden states.
      net_width, net_depth, cross: see `VelocityNet`.
      net_heads: None is one for each 64 of its width.
      time_distribution: of the times in training: 'uniform' in [0, 1], or 'logit_normal' (arXiv
        2403.03206), the sigmoid of normal numbers with mean time_mean and deviation time_std.
      time_mean, time_std: of 'logit_normal'; a larger mean is noisier.
      evaluation_times: see above.
      dtype: type of the network's computation; states and velocities are float32.
    """

    sampling: ClassVar[type] = FlowSampling
    has_likelihood: ClassVar[bool] = False

    pyramid: ScalePyramid
    target: Field
    width: int
    net_width: int
    net_depth: int
    net_heads: int | None = None
    cross: bool = False
    time_distribution: str = "uniform"
    time_mean: float = 0.0
    time_std: float = 1.0
    evaluation_times: int = 4
    dtype: jnp.dtype = jnp.float32

    def __post_init__(self) -> None:
        super().__post_init__()
        check_latents(self.target, "A flow head")
        if self.time_distribution not in ("uniform", "logit_normal"):
            raise ValueError(
                f"time_distribution is {self.time_distribution!r}; choose 'uniform' or "
                "'logit_normal'."
            )

    def setup(self) -> None:
        self.velocity = self._network()

    @nn.nowrap
    def _network(self, **parent) -> VelocityNet:
        heads = self.net_heads or max(1, self.net_width // _HEAD_DIM)
        (channels,) = self.target.shape
        return VelocityNet(
            channels, self.net_width, self.net_depth, heads, self.cross, self.dtype, **parent
        )

    def __call__(self, hidden: Float[jax.Array, "B L C"]) -> Float[jax.Array, "B L c"]:
        """The velocity of no noise at time 1, for all tokens of the pyramid."""
        latents = jnp.zeros((*hidden.shape[:2], *self.target.shape))
        times = jnp.ones((hidden.shape[0], self.pyramid.num_levels))
        return self.velocity(latents, times, hidden, self.pyramid)

    def loss(
        self,
        hidden: Float[jax.Array, "B n C"],
        target: Float[jax.Array, "B n c"],
        keys: jax.Array | None,
        pyramid: ScalePyramid,
    ) -> tuple[Float[jax.Array, "B n"], dict[str, Float[jax.Array, "B n"]]]:
        """See `Head` and the class; 'loss' is what is minimised."""
        batch, count = target.shape[0], pyramid.num_levels
        if keys is not None:

            def draw(key):
                time_key, noise_key = jax.random.split(key)
                noise = jax.random.normal(noise_key, target.shape[1:])
                return self.times_at(jax.random.uniform(time_key, (count,))), noise

            times, noise = jax.vmap(draw)(keys)
            loss = self.error(hidden, target, times, noise, pyramid)
        else:
            losses = []
            for i in range(self.evaluation_times):
                part = (i + 0.5) / self.evaluation_times
                times = jnp.full((batch, count), self.times_at(part))
                noise = jnp.broadcast_to(constant_noise(i, target.shape[1:]), target.shape)
                losses.append(self.error(hidden, target, times, noise, pyramid))
            loss = sum(losses) / self.evaluation_times
        return loss, {"loss": loss}

    @nn.nowrap
    def times_at(self, shares: jax.typing.ArrayLike) -> Float[jax.Array, " *n"]:
        """The times below which training draws these shares, in [0, 1], of its times."""
        if self.time_distribution == "uniform":
            return jnp.asarray(shares, jnp.float32)
        return logit_normal(shares, self.time_mean, self.time_std)

    def error(
        self,
        hidden: Float[jax.Array, "B n C"],
        target: Float[jax.Array, "B n c"],
        times: Float[jax.Array, "B K"],
        noise: Float[jax.Array, "B n c"],
        pyramid: ScalePyramid,
    ) -> Float[jax.Array, "B n"]:
        """Squared error of the velocity at given times of the levels and given noise."""
        t = by_token(times[..., None], pyramid.sizes)
        noisy = (1 - t) * target + t * noise
        velocity = self.velocity(noisy, times, hidden, pyramid)
        return jnp.square(velocity - (noise - target)).mean(-1)

    def sample(
        self,
        hiddens: tuple[Float[jax.Array, "B n C"], ...],
        weights: tuple[float, ...],
        keys: jax.Array,
        settings: LevelFlow,
    ) -> tuple[Float[jax.Array, "B n c"], Float[jax.Array, "B n c"]]:
        """Draws one level; guidance mixes velocities: (1 + t) cond - t uncond."""
        shape = (settings.pyramid.sizes[settings.level], *self.target.shape)
        noise = jax.vmap(lambda key: jax.random.normal(key, shape))(keys)
        drawn = noise_of_steps(keys, shape)
        latents = self.integrate(noise, hiddens, weights, settings, drawn)
        return latents, latents

    def integrate(
        self,
        noise: Float[jax.Array, "B n c"],
        hiddens: tuple[Float[jax.Array, "B n C"], ...],
        weights: tuple[float, ...],
        settings: LevelFlow,
        drawn: Callable[[jax.Array], jax.Array] | None = None,
    ) -> Float[jax.Array, "B n c"]:
        """From noise to latents; see `sample`, and `solve` for drawn."""
        net, variables = self.velocity.unbind()
        level = ScalePyramid((settings.pyramid.shapes[settings.level],))

        def velocity(x, time, hiddens, weights):
            times = jnp.full((x.shape[0], 1), time)
            found = tuple(net.apply(variables, x, times, hidden, level) for hidden in hiddens)
            return mixed(found, weights)

        return solve(velocity, noise, hiddens, weights, settings, drawn)

    @nn.nowrap
    def flops(self, tokens: int) -> float:
        """See `Head`: of the whole pyramid's tokens, or a part in proportion."""
        whole = self._network(parent=None).flops(self.pyramid, self.width)
        return whole * tokens / self.pyramid.length
