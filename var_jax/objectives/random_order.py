"""Tokens of one level from any others of it, in a random order: what trains MAR.

MAR, arXiv 2406.11838, section 3.3 and appendix B: masked tokens are predicted from those that are
not, and most of them are masked, since generation begins with nothing.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Bool

from var_jax.heads.flow import FlowHead
from var_jax.heads.latents import check_latents
from var_jax.network import Network
from var_jax.objectives.base import split_keys
from var_jax.objectives.likelihood import OwnPass
from var_jax.objectives.masked import over_masked
from var_jax.tokenizer.vqvae import VQVAE


@dataclasses.dataclass(frozen=True)
class RandomOrder(OwnPass):
    """The mean of the head's loss over the masked tokens of each example.

    Which ones these are is drawn for each example: the first ceil(p L) of a random order of its L
    tokens. p has a normal distribution of mean 1 and deviation `std`, cut off above 1 and below the
    network's `min_masked`. In evaluation nothing is drawn: the order is the same for all examples,
    and p is the middle of its range.

    Attributes:
      network, tokenizer, from_images: see `Likelihood`; the network's transformer is a `MAR`.
      std: see above.

    Raises:
      ValueError: another transformer, a head that draws tokens together, or targets that are no
        vectors of floats, which the network reads.
    """

    network: Network
    tokenizer: VQVAE
    from_images: bool = False
    std: float = 0.25

    #: Forward and backward.
    passes: ClassVar[int] = 3
    #: The whole level.
    trained: ClassVar[None] = None

    def __post_init__(self) -> None:
        _ = self.network.mar  # Raises if it is none.
        check_latents(self.tokenizer.codec.target, "MAR")
        if isinstance(self.network.head, FlowHead):
            raise ValueError(
                "A flow head draws the tokens of a level together, but 'random_order' a few at a "
                "time; choose model.head 'diffusion'."
            )
        if self.std <= 0:
            raise ValueError(f"std is a standard deviation and must be positive: {self.std}.")

    def per_token(
        self, params: Any, frozen: Any, batch: Any, keys: jax.Array | None = None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Loss of each token, [B, L], and what is reported of it, as `over_masked` has them.

        Args:
          params, frozen, batch: see `Likelihood`.
          keys: one PRNG key for each example [B]; None in evaluation.
        """
        lesson_keys, mask_keys, network_keys, head_keys = split_keys(keys, 4)
        targets = self.likelihood.lesson(frozen, batch, lesson_keys).targets
        masked = self.draw_masks(mask_keys, len(targets))
        given = self.likelihood.given(frozen, batch)
        hidden = self.network.filled_in(params, targets, given, network_keys, masked=masked)
        pyramid = self.network.mar.pyramid
        loss, metrics = self.network.loss(params, hidden, targets, head_keys, pyramid)
        return over_masked(loss, masked), {n: over_masked(x, masked) for n, x in metrics.items()}

    def draw_masks(self, keys: jax.Array | None, batch: int) -> Bool[jax.Array, "B L"]:
        """Which tokens are masked; keys: see `per_token`."""
        mar = self.network.mar
        length, least = mar.pyramid.length, mar.min_masked

        def first(rank: jax.Array, share: jax.Array | float) -> jax.Array:
            return rank < jnp.clip(jnp.ceil(share * length), length - mar.max_known, length)

        if keys is None:
            fixed = jax.random.permutation(jax.random.key(0), length)
            return jnp.broadcast_to(first(fixed, (1 + least) / 2), (batch, length))

        def draw(key: jax.Array) -> jax.Array:
            order_key, share_key = jax.random.split(key)
            below = jax.random.truncated_normal(share_key, (least - 1) / self.std, 0.0)
            return first(jax.random.permutation(order_key, length), 1 + self.std * below)

        return jax.vmap(draw)(keys)
