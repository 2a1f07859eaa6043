"""Independent categorical distributions over the vocabulary, one a token (VAR)."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from var_jax.heads.filters import LevelPolicy, filter_logits
from var_jax.transformer.layers import Linear, init_std


class CategoricalHead(nn.Module):
    """Linear map to logits.

    Attributes:
      vocab_size: V.
      width: C.
      label_smoothing: mass spread evenly over the vocabulary in `loss`.
      init_factor: on the kernel at initialisation (`hd` officially).
      dtype: type of the operands of the matrix product; its sums and the logits are float32.
    """

    vocab_size: int
    width: int
    label_smoothing: float = 0.0
    init_factor: float = 0.02
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        self.projection = Linear(
            (self.width,),
            (self.vocab_size,),
            ("embed", "vocab"),
            std=self.init_factor * init_std(self.width),
            dtype=self.dtype,
            sum_dtype=jnp.float32,
        )

    def __call__(self, hidden: jax.Array) -> jax.Array:
        """Logits, float32 [B, n, V]."""
        logits = self.projection(hidden)
        return nn.with_logical_constraint(logits, ("batch", "length", "act_vocab"))

    def loss(
        self, hidden: jax.Array, target: jax.Array, keys: jax.Array | None = None
    ) -> jax.Array:
        """Cross entropy with label smoothing in nats, float32 [B, n]. `keys` is not used."""
        return self.loss_and_correct(hidden, target)[0]

    def loss_and_correct(
        self, hidden: jax.Array, target: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Smoothed loss, negative log likelihood and whether the best token is the target.

        Returns:
          float32 [B, n], float32 [B, n], bool [B, n].
        """
        logits = self(hidden)
        log_z = jax.nn.logsumexp(logits, axis=-1)
        nll = log_z - jnp.take_along_axis(logits, target[..., None], axis=-1)[..., 0]
        loss = nll
        if self.label_smoothing:
            uniform = log_z - logits.mean(-1)
            loss = (1 - self.label_smoothing) * nll + self.label_smoothing * uniform
        return loss, nll, logits.argmax(-1) == target

    def log_prob(self, hidden: jax.Array, target: jax.Array) -> jax.Array:
        """Log likelihood in nats, float32 [B, n]."""
        return -self.loss_and_correct(hidden, target)[1]

    def sample(
        self,
        hidden: jax.Array,
        hidden_uncond: jax.Array | None,
        scale: float,
        keys: jax.Array,
        policy: LevelPolicy,
    ) -> tuple[jax.Array, jax.Array]:
        """Draws the tokens of one level; guidance mixes logits: (1 + t) cond - t uncond.

        Returns:
          int32 [B, n] tokens, and the same tokens, or with `policy.smooth` a distribution
          over the codes, float32 [B, n, V] (official `more_smooth`, for looks only).
        """
        logits = self(hidden)
        if hidden_uncond is not None:
            logits = (1 + scale) * logits - scale * self(hidden_uncond)
        logits = filter_logits(logits / policy.temperature, policy.top_k, policy.top_p)

        def draw(key, logits):
            return jax.random.categorical(key, logits, axis=-1).astype(jnp.int32)

        if policy.top_k == 1:
            tokens = logits.argmax(-1).astype(jnp.int32)
        else:
            tokens = jax.vmap(draw)(keys, logits)
        if not policy.smooth:
            return tokens, tokens

        def gumbel(key, logits):
            return jax.random.gumbel(jax.random.fold_in(key, 1), logits.shape)

        noise = jax.vmap(gumbel)(keys, logits)
        soft = (logits * (1 + policy.progress) + noise) / policy.smooth_temperature
        return tokens, jax.nn.softmax(soft, axis=-1)
