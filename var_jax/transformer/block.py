"""One transformer block: attention and MLP, each modulated and gated by the condition."""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from var_jax.transformer.attention import Attention, BlockSettings, CrossAttention, Visibility
from var_jax.transformer.cache import KeysValues
from var_jax.transformer.condition import Condition
from var_jax.transformer.layers import Linear, Modulation, init_std, modulate, per_token


class MLP(nn.Module):
    """Linear, tanh-approximated GELU, Linear.

    Attributes:
      width: C.
      hidden: width of the middle.
      out_std: standard deviation of what the output is made with, at initialisation.
      dtype: type of the computation.
    """

    width: int
    hidden: int
    out_std: float
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        std = init_std(self.width)
        x = Linear((self.width,), (self.hidden,), ("embed", "mlp"), std, self.dtype, name="up")(x)
        x = nn.with_logical_constraint(x, ("batch", "length", "act_mlp"))
        x = nn.gelu(x, approximate=True)
        return Linear(
            (self.hidden,), (self.width,), ("mlp", "embed"), self.out_std, self.dtype, name="down"
        )(x)


class Block(nn.Module):
    """x + gamma1 * attention(adaLN(x)), then + gamma2 * MLP(adaLN(x)).

    With cross-attention, x + CrossAttention(x, condition's tokens) comes between the two.

    Attributes:
      settings: see `BlockSettings`.
    """

    settings: BlockSettings

    @nn.compact
    def __call__(
        self,
        x: Float[jax.Array, "B n C"],
        condition: Condition,
        branch_scale: Float[jax.Array, "B 2"],
        visibility: Visibility,
        cache: tuple[KeysValues, ...] | None = None,
        modulation: jax.Array | None = None,
        block: Int[jax.Array, ""] | None = None,
    ) -> tuple[Float[jax.Array, "B n C"], tuple[KeysValues, jax.Array] | None]:
        """Args:
          x: all tokens of a pass.
          condition: its vector [B, C], or [B, 6, C] with shared adaptive layer norm; with an axis
            of tokens behind B where tokens differ.
          branch_scale: factors on the two residual branches (drop path: 0 or
            1 / keep probability; 1 in evaluation).
          visibility, cache, block: see `Attention`.
          modulation: what this block made of the same condition before.

        Returns:
          As x; and None without a cache, else the new cache level and the modulation.
        """
        width, dtype = self.settings.width, self.settings.dtype
        if modulation is None:
            modulation = Modulation(
                width, self.settings.shared_adaln, self.settings.adaln_init, dtype, name="adaln"
            )(condition.vector)
        gamma1, gamma2, scale1, scale2, shift1, shift2 = (modulation[..., i, :] for i in range(6))
        gate1, gate2 = (
            (per_token(gamma) * branch_scale[:, i : i + 1, None]).astype(dtype)
            for i, gamma in enumerate((gamma1, gamma2))
        )
        y, new = Attention(self.settings, name="attention")(
            modulate(x, scale1, shift1).astype(dtype), visibility, cache, block
        )
        x = x + gate1 * y
        if self.settings.cross_attention:
            read = CrossAttention(self.settings, name="cross_attention")
            x = x + read(x, condition.tokens, condition.mask)
        hidden = round(width * self.settings.mlp_ratio)
        out_std = init_std(width) / math.sqrt(2 * self.settings.depth)
        y = MLP(width, hidden, out_std, dtype, name="mlp")(
            modulate(x, scale2, shift2).astype(dtype)
        )
        x = x + gate2 * y
        x = nn.with_logical_constraint(x, ("batch", "length", "act_embed"))
        return x, None if cache is None else (new, modulation)
