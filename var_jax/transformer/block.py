"""One transformer block: attention and MLP, each modulated and gated by the condition."""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from var_jax.context import KeySegment
from var_jax.transformer.attention import Attention, LevelCache
from var_jax.transformer.layers import AdaLNInit, Linear, Modulation, init_std, modulate


class MLP(nn.Module):
    """Linear, tanh-approximated GELU, Linear.

    Attributes:
      width: C.
      hidden: width of the middle.
      depth: number of blocks, which sets the scale of the output at initialisation.
      dtype: type of the computation.
    """

    width: int
    hidden: int
    depth: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        std = init_std(self.width)
        x = Linear((self.width,), (self.hidden,), ("embed", "mlp"), std, self.dtype, name="up")(x)
        x = nn.with_logical_constraint(x, ("batch", "length", "act_mlp"))
        x = nn.gelu(x, approximate=True)
        std = std / math.sqrt(2 * self.depth)
        return Linear(
            (self.hidden,), (self.width,), ("mlp", "embed"), std, self.dtype, name="down"
        )(x)


class Block(nn.Module):
    """x + gamma1 * attention(adaLN(x)), then + gamma2 * MLP(adaLN(x)).

    Attributes:
      width, num_heads, mlp_ratio, depth, qk_norm, shared_adaln, adaln_init,
      attention_implementation, dtype: see `VAR`.
    """

    width: int
    num_heads: int
    mlp_ratio: float
    depth: int
    qk_norm: bool
    shared_adaln: bool
    adaln_init: AdaLNInit
    attention_implementation: str | None = None
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        condition: jax.Array,
        keep: jax.Array,
        segments: tuple[KeySegment, ...],
        cache: tuple[LevelCache, ...] | None = None,
        modulation: jax.Array | None = None,
    ) -> tuple[jax.Array, tuple[LevelCache, jax.Array] | None]:
        """Args:
          x: [B, L, C].
          condition: [B, C], or [B, 6, C] with shared adaptive layer norm.
          keep: float32 [B, 2]: factors on the two residual branches (drop path: 0 or
            1 / keep probability; 1 in evaluation).
          segments, cache: see `Attention`.
          modulation: [B, 6, C], what this block made of the same condition before.

        Returns:
          x [B, L, C]; and None without a cache, else the new cache level and the modulation.
        """
        if modulation is None:
            modulation = Modulation(
                self.width, self.shared_adaln, self.adaln_init, self.dtype, name="adaln"
            )(condition)
        gamma1, gamma2, scale1, scale2, shift1, shift2 = (modulation[:, i] for i in range(6))
        gate1 = (gamma1 * keep[:, :1]).astype(self.dtype)[:, None]
        gate2 = (gamma2 * keep[:, 1:]).astype(self.dtype)[:, None]
        y, new = Attention(
            self.width,
            self.num_heads,
            self.depth,
            self.qk_norm,
            self.attention_implementation,
            self.dtype,
            name="attention",
        )(modulate(x, scale1, shift1).astype(self.dtype), segments, cache)
        x = x + gate1 * y
        y = MLP(self.width, round(self.width * self.mlp_ratio), self.depth, self.dtype, name="mlp")(
            modulate(x, scale2, shift2).astype(self.dtype)
        )
        x = x + gate2 * y
        x = nn.with_logical_constraint(x, ("batch", "length", "act_embed"))
        return x, None if cache is None else (new, modulation)
