"""The velocity of noisy latents from the states of a transformer that has read them (xAR)."""

from __future__ import annotations

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from var_jax.fields import Field
from var_jax.heads.base import mixed
from var_jax.heads.latents import check_latents
from var_jax.heads.ode import FlowSampling
from var_jax.pyramid import ScalePyramid
from var_jax.transformer.layers import Linear


class LinearVelocity(nn.Module):
    """A linear map, zero at initialisation, as is the velocity.

    The head of an `XAR`: the transformer, not the head, knows noise and time, so who trains and who
    draws ask it for a velocity.

    Attributes:
      target: a vector of floats.
      width: C, of the hidden states.
    """

    sampling: ClassVar[type] = FlowSampling
    has_likelihood: ClassVar[bool] = False

    target: Field
    width: int

    def __post_init__(self) -> None:
        super().__post_init__()
        check_latents(self.target, "A velocity head")

    @nn.compact
    def __call__(self, hidden: Float[jax.Array, "B n C"]) -> Float[jax.Array, "B n c"]:
        """The velocity, float32."""
        return Linear((self.width,), self.target.shape, ("embed", None), 0.0, name="out")(hidden)

    def loss(
        self,
        hidden: Float[jax.Array, "B n C"],
        target: Float[jax.Array, "B n c"],
        keys: jax.Array | None,
        pyramid: ScalePyramid,
    ) -> tuple[Float[jax.Array, "B n"], dict[str, Float[jax.Array, "B n"]]]:
        """Squared error, averaged over channels; target: the velocity, noise minus data."""
        loss = jnp.square(self(hidden) - target).mean(-1)
        return loss, {"loss": loss}

    def sample(
        self,
        hiddens: tuple[Float[jax.Array, "B n C"], ...],
        weights: tuple[float, ...],
        keys: jax.Array | None,
        settings: Any,
    ) -> tuple[Float[jax.Array, "B n c"], Float[jax.Array, "B n c"]]:
        """The velocity, twice; nothing is drawn. Guidance mixes: (1 + t) cond - t uncond."""
        velocity = mixed(tuple(self(hidden) for hidden in hiddens), weights)
        return velocity, velocity

    @nn.nowrap
    def flops(self, tokens: int) -> float:
        """See `Head`."""
        return 2.0 * tokens * self.width * self.target.shape[0]
