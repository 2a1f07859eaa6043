"""What a head is: how the tokens of one level are predicted from hidden states."""

from __future__ import annotations

from typing import Any, Protocol

import jax


class Head(Protocol):
    """A flax module over hidden states [B, n, C]; targets are whatever the codec encodes to."""

    def loss(self, hidden: jax.Array, target: jax.Array, keys: jax.Array | None) -> jax.Array:
        """Training loss of each token, float32 [B, n]; `keys` [B] where the loss samples."""

    def log_prob(self, hidden: jax.Array, target: jax.Array) -> jax.Array:
        """Log likelihood of each token in nats, float32 [B, n]."""

    def sample(
        self,
        hidden: jax.Array,
        hidden_uncond: jax.Array | None,
        scale: float,
        keys: jax.Array,
        policy: Any,
    ) -> tuple[jax.Array, jax.Array]:
        """Draws one level.

        Args:
          hidden: [B, n, C] for the labels.
          hidden_uncond: [B, n, C] for 'no class'; None where nothing is guided.
          scale: guidance at this level; 0 is none.
          keys: one PRNG key an example, [B].
          policy: head-specific settings of this level.

        Returns:
          The target, and what the codec is to accumulate for it.
        """
