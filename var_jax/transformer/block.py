"""One transformer block: attention, maybe a mixer, MLP; the condition modulates and gates each."""

from __future__ import annotations

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from var_jax.transformer.attention import Attention, BlockSettings, CrossAttention, Visibility
from var_jax.transformer.cache import KeysValues
from var_jax.transformer.condition import Condition
from var_jax.transformer.layers import (
    LearnedNorms,
    Linear,
    Modulation,
    by_token,
    dropout,
    folded,
    init_std,
    layer_norm,
    modulate,
    per_token,
    rms_norm,
)
from var_jax.transformer.mixer import MixerState


class MLP(nn.Module):
    """Linear, GELU, Linear.

    Attributes:
      width: C.
      hidden: width of the middle.
      out_std: standard deviation of what the output is made with, at initialisation.
      dtype: type of the computation.
      exact_gelu: False is its approximation by a hyperbolic tangent.
      dropout: share of the values in the middle that are 0 in training.
    """

    width: int
    hidden: int
    out_std: float
    dtype: jnp.dtype = jnp.float32
    exact_gelu: bool = False
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array, keys: jax.Array | None = None) -> jax.Array:
        std = init_std(self.width)
        x = Linear((self.width,), (self.hidden,), ("embed", "mlp"), std, self.dtype, name="up")(x)
        x = nn.with_logical_constraint(x, ("batch", "length", "act_mlp"))
        x = dropout(nn.gelu(x, approximate=not self.exact_gelu), self.dropout, keys)
        return Linear(
            (self.hidden,), (self.width,), ("mlp", "embed"), self.out_std, self.dtype, name="down"
        )(x)


class GatedMLP(nn.Module):
    """Linear(GELU(Linear) * Linear), its middle 8/3 as wide; the GELU is exact.

    Attributes:
      width: C.
      dtype: type of the computation.
    """

    width: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[jax.Array, "B n C"]) -> Float[jax.Array, "B n C"]:
        width, hidden = self.width, self.hidden(self.width)

        def linear(name: str, sizes: tuple[int, int], axes: tuple[str, str], x: jax.Array):
            return Linear(sizes[:1], sizes[1:], axes, init_std(width), self.dtype, name=name)(x)

        gate = linear("gate", (width, hidden), ("embed", "mlp"), x)
        up = linear("up", (width, hidden), ("embed", "mlp"), x)
        x = nn.gelu(gate, approximate=False) * up
        x = nn.with_logical_constraint(x, ("batch", "length", "act_mlp"))
        return linear("down", (hidden, width), ("mlp", "embed"), x)

    @staticmethod
    def hidden(width: int) -> int:
        """Width of the middle."""
        return int(width * 4 * 2 / 3)


class Block(nn.Module):
    """x + gamma1 * attention(adaLN(x)), then + gamma2 * MLP(adaLN(x)).

    Between the two come, where there are, x + CrossAttention(x, condition's tokens), and then a
    mixer with its own gamma and adaLN.

    Attributes:
      settings: see `BlockSettings`.
    """

    settings: BlockSettings

    @nn.compact
    def __call__(
        self,
        x: Float[jax.Array, "B n C"],
        condition: Condition,
        branch_scale: Float[jax.Array, "B branches"],
        visibility: Visibility,
        cache: tuple[KeysValues, ...] | None = None,
        modulation: jax.Array | None = None,
        state: MixerState | None = None,
        block: Int[jax.Array, ""] | None = None,
        keys: jax.Array | None = None,
    ) -> tuple[Float[jax.Array, "B n C"], tuple[KeysValues, jax.Array, MixerState] | None]:
        """Args:
          x: all tokens of a pass.
          condition: its vector [B, C], or [B, 6, C] with shared adaptive layer norm (9 with a
            mixer); with an axis of tokens, or of their runs, behind B where tokens differ.
          branch_scale: factors on the residual branches (drop path: 0 or 1 / keep probability; 1
            in evaluation).
          visibility, cache, block: see `Attention`.
          modulation: what this block made of the same condition before.
          state: of the mixer after the tokens before.
          keys: one PRNG key for each example [B], for dropout; None in evaluation.

        Returns:
          As x; and None without a cache, else the new cache level, the modulation and the new
          state.
        """
        settings = self.settings
        width, dtype, branches = settings.width, settings.dtype, settings.num_branches
        if settings.style == "vit":
            modulation = LearnedNorms(width, dtype, branches, name="norms")()
        elif modulation is None:
            modulation = Modulation(
                width, settings.shared_adaln, settings.adaln_init, dtype, branches, name="adaln"
            )(condition.vector)
        plain, runs = condition.plain, condition.runs
        of_tokens = _after_plain(modulation, plain, branches) if plain else modulation
        of_tokens = by_token(of_tokens, runs) if runs else of_tokens
        vectors = [of_tokens[..., i, :] for i in range(3 * branches)]
        gammas, scales, shifts = (vectors[i * branches :][:branches] for i in range(3))
        gates = [
            (per_token(gamma) * branch_scale[:, i : i + 1, None]).astype(dtype)
            for i, gamma in enumerate(gammas)
        ]
        norms = self._norms()
        y, new = Attention(settings, name="attention")(
            modulate(x, scales[0], shifts[0], norms[0]).astype(dtype),
            visibility,
            cache,
            block,
            folded(keys, 0),
        )
        x = x + gates[0] * dropout(y, settings.dropout, folded(keys, 1))
        if settings.cross_attention:
            read = CrossAttention(settings, name="cross_attention")
            x = x + read(x, condition.tokens, condition.mask)
        if settings.mixer is not None:
            y, state = settings.mixer.layer("mixer")(
                modulate(x, scales[1], shifts[1], norms[1]).astype(dtype), state
            )
            x = x + gates[1] * y
        y = modulate(x, scales[-1], shifts[-1], norms[-1]).astype(dtype)
        if settings.dropout:
            y = dropout(self._mlp()(y, folded(keys, 2)), settings.dropout, folded(keys, 3))
        else:
            y = self._mlp()(y)
        x = x + gates[-1] * y
        x = nn.with_logical_constraint(x, ("batch", "length", "act_embed"))
        return x, None if cache is None else (new, modulation, state)

    def _norms(self) -> list[Callable[[jax.Array], jax.Array]]:
        """Of each branch."""
        settings = self.settings
        if settings.style != "dit":
            return [rms_norm if settings.style == "gated" else layer_norm] * settings.num_branches
        gains = self.param(
            "norm_gains",
            nn.with_logical_partitioning(nn.initializers.ones_init(), (None, "embed")),
            (settings.num_branches, settings.width),
            jnp.float32,
        )
        return [lambda x, gain=gain: rms_norm(x) * gain for gain in gains]

    def _mlp(self) -> nn.Module:
        settings = self.settings
        width, dtype = settings.width, settings.dtype
        if settings.style == "gated":
            return GatedMLP(width, dtype, name="mlp")
        hidden = round(width * settings.mlp_ratio)
        out_std = init_std(width) / math.sqrt(2 * settings.depth)
        exact = settings.style == "vit"
        return MLP(width, hidden, out_std, dtype, exact, settings.dropout, name="mlp")


def _after_plain(
    modulation: Float[jax.Array, "B k m C"], plain: int, branches: int
) -> Float[jax.Array, "B r m C"]:
    """The modulation of runs, with so many before them that it leaves as they are."""
    batch, _, count, width = modulation.shape
    nothing = (jnp.arange(count) < branches).astype(modulation.dtype)[:, None]
    nothing = jnp.broadcast_to(nothing, (batch, plain, count, width))
    return jnp.concatenate([nothing, modulation], 1)
