"""The velocity of noisy entities: what trains transformers that denoise (xAR, ACDiT).

In xAR, arXiv 2502.20388, the context is as noisy as what is learned, each entity at a time of its
own, so that a model learns not to trust all that it has drawn. In ACDiT, arXiv 2412.07720, it is
clean.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from var_jax.heads.latents import check_latents, constant_noise, logit_normal
from var_jax.heads.linear_velocity import LinearVelocity
from var_jax.network import Network
from var_jax.objectives.base import split_keys
from var_jax.objectives.likelihood import OwnPass
from var_jax.tokenizer.vqvae import VQVAE
from var_jax.transformer.layers import by_token


@dataclasses.dataclass(frozen=True)
class FlowMatching(OwnPass):
    """The mean squared error of the velocity, noise minus data, over all tokens and channels.

    In training each entity of each example has a time and noise of its own. In evaluation nothing
    is drawn: the loss is the mean over `evaluation_times` passes, in which an entity has one after
    the other of as many times, the medians of equal parts of their distribution, and entities after
    each other times after each other; the noise of a token is a constant of its place and the pass.

    Attributes:
      network, tokenizer, from_images: see `Likelihood`; the network's transformer is a `Denoiser`.
      time_mean, time_std: of the logit-normal times, see `logit_normal`; a larger mean is noisier.
      evaluation_times: see above.

    Raises:
      ValueError: another transformer or head, targets that are no vectors of floats, or numbers
        that fit no distribution.
    """

    network: Network
    tokenizer: VQVAE
    from_images: bool = False
    time_mean: float = 0.0
    time_std: float = 1.0
    evaluation_times: int = 4

    #: Forward and backward.
    passes: ClassVar[int] = 3
    #: All entities.
    trained: ClassVar[None] = None

    def __post_init__(self) -> None:
        _ = self.network.denoiser  # Raises if it is none.
        check_latents(self.tokenizer.codec.target, "Flow matching")
        if not isinstance(self.network.head, LinearVelocity):
            raise ValueError(
                "'flow_matching' trains a transformer that denoises itself, which needs no "
                f"{type(self.network.head).__name__}; choose model.head 'velocity'."
            )
        if self.time_std <= 0 or self.evaluation_times < 1:
            raise ValueError(
                f"time_std is {self.time_std} and evaluation_times {self.evaluation_times}; give a "
                "positive deviation, and 1 pass or more."
            )

    def per_token(
        self, params: Any, frozen: Any, batch: Any, keys: jax.Array | None = None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Loss of each token of the pyramid, [B, L], and what is reported of it.

        Args:
          params, frozen, batch: see `Likelihood`.
          keys: one PRNG key for each example [B]; None in evaluation.
        """
        lesson_keys, network_keys, draw_keys = split_keys(keys, 3)
        denoiser = self.network.denoiser
        data = self.likelihood.lesson(frozen, batch, lesson_keys).targets[:, denoiser.order]
        given = self.likelihood.given(frozen, batch)
        count = denoiser.entities.num_levels
        if draw_keys is not None:

            def draw(key: jax.Array) -> tuple[jax.Array, jax.Array]:
                time_key, noise_key = jax.random.split(key)
                times = self.times_at(jax.random.uniform(time_key, (count,)))
                return times, jax.random.normal(noise_key, data.shape[1:])

            times, noise = jax.vmap(draw)(draw_keys)
            loss = self.error(params, data, times, noise, given, network_keys)
        else:
            number = np.arange(self.evaluation_times)
            shares = ((number[:, None] + np.arange(count)) % len(number) + 0.5) / len(number)
            noises = jnp.stack([constant_noise(i, data.shape[1:]) for i in number.tolist()])

            def error(drawn: tuple[jax.Array, jax.Array]) -> jax.Array:
                times, noise = (jnp.broadcast_to(x, (len(data), *x.shape)) for x in drawn)
                return self.error(params, data, times, noise, given)

            loss = jax.lax.map(error, (self.times_at(shares), noises)).mean(0)
        loss = loss[:, np.argsort(denoiser.order)]
        return loss, {"loss": loss}

    def times_at(self, shares: jax.typing.ArrayLike) -> Float[jax.Array, " *n"]:
        """The times below which training draws these shares, in [0, 1], of its times."""
        return logit_normal(shares, self.time_mean, self.time_std)

    def error(
        self,
        params: Any,
        data: Float[jax.Array, "B L c"],
        times: Float[jax.Array, "B K"],
        noise: Float[jax.Array, "B L c"],
        given: Any,
        keys: jax.Array | None = None,
    ) -> Float[jax.Array, "B L"]:
        """Squared error of the velocity, averaged over channels; tokens in the order of entities.

        Args:
          params: of the network.
          data, noise: between which the inputs lie.
          times: of the entities.
          given, keys: see `Denoiser`.
        """
        entities = self.network.denoiser.entities
        t = by_token(times[..., None], entities.sizes)
        noisy = (1 - t) * data + t * noise
        beside = {"clean": data} if self.network.denoiser.reads_clean else {}
        hidden, _ = self.network.denoised(params, noisy, given, keys, times=times, **beside)
        return self.network.loss(params, hidden, noise - data, None, entities)[0]
