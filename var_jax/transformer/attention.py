"""Multi-head attention: over the pyramid, with or without a cache of earlier levels, and to the
condition's tokens."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from var_jax.context import KeySegment, dense_mask
from var_jax.kernels.block_attention import block_attention, cached_attention
from var_jax.kernels.block_attention.reference import scaled_operands
from var_jax.transformer.cache import KeysValues
from var_jax.transformer.layers import (
    AdaLNInit,
    Linear,
    dropout,
    init_std,
    layer_norm,
    rms_norm,
)
from var_jax.transformer.mixer import Mixer

#: See `CrossAttention`.
CROSS_NORMS = ("queries_keys", "input")


@dataclasses.dataclass(frozen=True)
class BlockSettings:
    """What a block is made of.

    Attributes:
      width: C; head_dim is C / num_heads.
      num_heads: N.
      depth: number of blocks, which sets the scale of their outputs at initialisation.
      mlp_ratio: hidden width of the MLP over C.
      qk_norm: q and k are L2-normalised and q is multiplied by a learned factor for each
        head, exp(min(log_scale, ln 100)), log_scale = ln 4 at initialisation. Without it
        the logits are scaled by 0.25 / sqrt(head_dim).
      shared_adaln: the condition is already the modulation's vectors, see `Modulation`.
      adaln_init: factors on the modulation at initialisation.
      cross_attention: blocks read the condition's tokens between attention and MLP.
      cross_norm: how that attention is normalised, see `CrossAttention`.
      mixer: a third branch between attention and MLP, with a modulation of its own; None is none.
      style: 'var', as described above. In all others logits are scaled by 1 / sqrt(head_dim), and
        qk_norm is False. 'vit' (arXiv 2010.11929): no condition modulates; norms have their own
        gain and bias, and the MLP's GELU is exact. 'gated', as in FlowAR and xAR: norms divide by
        the root mean square alone, the MLP is a `GatedMLP`, whatever mlp_ratio is, and keys have a
        bias, which counts where positions turn them. 'dit', as in ACDiT: norms divide by the root
        mean square and have a gain, those of queries and keys too, and keys have a bias.
      dropout: in training, share of the attention's weights, of the values in the middle of the MLP
        and of those that both return, that are 0. With it attention is not of a kernel.
      attention_implementation: of `block_attention`; None picks the best for the backend.
      dtype: type of the computation; parameters are float32.
    """

    width: int
    num_heads: int
    depth: int
    mlp_ratio: float = 4.0
    qk_norm: bool = True
    shared_adaln: bool = False
    adaln_init: AdaLNInit = AdaLNInit()
    cross_attention: bool = False
    cross_norm: str = "queries_keys"
    mixer: Mixer | None = None
    style: str = "var"
    dropout: float = 0.0
    attention_implementation: str | None = None
    dtype: jnp.dtype = jnp.float32

    def __post_init__(self) -> None:
        if self.width % self.num_heads:
            raise ValueError(
                f"width {self.width} is not divisible by num_heads {self.num_heads}; "
                "head_dim is their quotient."
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; give a share from 0 to below 1.")
        if self.dropout and self.style == "gated":
            raise ValueError(f"dropout is {self.dropout}, but gated blocks have none; set it to 0.")
        if self.cross_norm not in CROSS_NORMS:
            raise ValueError(
                f"Unknown cross_norm {self.cross_norm!r}; choose one of {', '.join(CROSS_NORMS)}."
            )

    @property
    def num_branches(self) -> int:
        """Modulated branches of a block: attention, maybe a mixer, MLP."""
        return 2 if self.mixer is None else 3


@dataclasses.dataclass(frozen=True)
class Visibility:
    """Which keys the tokens of a pass see, and where they stand.

    Attributes:
      segments: key interval of each run of queries; counts the cached keys first.
      rotate: turns queries and keys [B, n, N, H] by the tokens' positions.
      keep_queries: also return the queries, which a cache policy needs.
      present: bool [B, n], which keys are there at all, where that differs from example to example;
        at least one. None is all; without a cache, and in place of the segments.
      laid_out: intervals [lo, hi) of the tokens, one after the other the keys that the segments
        count, for visibility that is no interval of the tokens; () is the tokens as they are;
        without a cache.
    """

    segments: tuple[KeySegment, ...]
    rotate: Callable[[jax.Array], jax.Array] = lambda x: x
    keep_queries: bool = False
    present: jax.Array | None = None
    laid_out: tuple[tuple[int, int], ...] = ()


class Attention(nn.Module):
    """Self-attention whose keys have no bias (official VAR), but in some styles of block.

    Attributes:
      settings: of the block.
    """

    settings: BlockSettings

    @nn.compact
    def __call__(
        self,
        x: Float[jax.Array, "B n C"],
        visibility: Visibility,
        cache: tuple[KeysValues, ...] | None = None,
        block: Int[jax.Array, ""] | None = None,
        keys: jax.Array | None = None,
    ) -> tuple[Float[jax.Array, "B n C"], KeysValues | None]:
        """Attends from x to itself, or to the cached levels and itself.

        Args:
          x: all tokens of a pass.
          visibility: who sees whom.
          cache: None to attend within x only; else earlier levels, coarsest first, of all blocks of
            a run.
          block: which of them this is.
          keys: one PRNG key for each example [B], for dropout; None in evaluation.

        Returns:
          As x, and with a cache also the keys and values of x.
        """
        width, heads, dtype = self.settings.width, self.settings.num_heads, self.settings.dtype
        head_dim = width // heads
        kernel = self.param(
            "qkv_kernel",
            nn.with_logical_partitioning(
                nn.initializers.normal(init_std(width)),
                ("embed", None, "heads", "head_dim"),
            ),
            (width, 3, heads, head_dim),
            jnp.float32,
        )
        bias = {
            name: self.param(
                f"{name}_bias",
                nn.with_logical_partitioning(nn.initializers.zeros_init(), ("heads", "head_dim")),
                (heads, head_dim),
                jnp.float32,
            )
            for name in ("q", "k", "v")
            if name != "k" or self.settings.style in ("gated", "dit")
        }
        log_scale = None
        if self.settings.qk_norm:
            log_scale = self.param(
                "log_scale",
                nn.with_logical_partitioning(nn.initializers.constant(math.log(4.0)), ("heads",)),
                (heads,),
                jnp.float32,
            )

        # Three products [B L, C] x [C, N H]; each result is contiguous for the kernel.
        flat = x.astype(dtype).reshape(-1, width)
        kernel = kernel.astype(dtype).reshape(width, 3, width)
        q, k, v = ((flat @ kernel[:, i]).reshape(*x.shape[:2], heads, head_dim) for i in range(3))
        q = q + bias["q"].astype(dtype)
        v = v + bias["v"].astype(dtype)
        if "k" in bias:
            k = k + bias["k"].astype(dtype)
        if self.settings.style == "dit":
            q, k = (self._normalised(t, name) for t, name in ((q, "q"), (k, "k")))
        q, k, v = (
            nn.with_logical_constraint(t, ("batch", "length", "act_heads", None)) for t in (q, k, v)
        )

        q, k = visibility.rotate(q), visibility.rotate(k)

        new = None
        scale = (0.25 if self.settings.style == "var" else 1.0) / math.sqrt(head_dim)
        if cache is not None:
            if self.settings.qk_norm:
                # Normalise once, when the key enters the cache, not at every later level.
                q, k = scaled_operands(q, k, 1.0, log_scale)
                q, k = q.astype(dtype), k.astype(dtype)
                log_scale, scale = None, 1.0
            flat = (*k.shape[:2], width)
            new = KeysValues(
                k.reshape(flat), v.reshape(flat), q if visibility.keep_queries else None
            )

        implementation = self.settings.attention_implementation
        segments = visibility.segments
        dropped = self.settings.dropout if keys is not None else 0.0
        if visibility.present is not None or dropped:
            q, k = scaled_operands(q, k, scale, log_scale)
            if visibility.present is None:
                mask = dense_mask(segments, k.shape[1])[None, None]
            else:
                mask = visibility.present[:, None, None]
            out = masked_attention(q.astype(dtype), k.astype(dtype), v, mask, dropped, keys)
        elif cache:
            earlier = [(level.keys, level.values) for level in cache]
            out = cached_attention(
                q, k, v, earlier, block, segments, scale=scale, implementation=implementation
            )
        else:
            if visibility.laid_out:
                k, v = (
                    jnp.concatenate([t[:, lo:hi] for lo, hi in visibility.laid_out], 1)
                    for t in (k, v)
                )
            out = block_attention(
                q,
                k,
                v,
                segments,
                scale=scale,
                log_scale=log_scale,
                implementation=implementation,
            )
        out = nn.with_logical_constraint(out, ("batch", "length", "act_heads", None))
        out = Linear(
            (heads, head_dim),
            (width,),
            ("heads", "head_dim", "embed"),
            std=init_std(width) / math.sqrt(2 * self.settings.depth),
            dtype=dtype,
            name="out",
        )(out)
        return out, new

    def _normalised(self, x: Float[jax.Array, "B n N H"], name: str) -> Float[jax.Array, "B n N H"]:
        init = nn.with_logical_partitioning(nn.initializers.ones_init(), ("head_dim",))
        gain = self.param(f"{name}_gain", init, x.shape[-1:], jnp.float32)
        return rms_norm(x) * gain.astype(x.dtype)


class CrossAttention(nn.Module):
    """Attention from the pyramid's tokens to the condition's, added before it is gated.

    With cross_norm 'queries_keys' queries are L2-normalised like keys and multiplied by
    exp(min(log_scale, ln 100)), as with qk_norm in `Attention`. With 'input', as in Infinity, the
    norm of the tokens has gain and bias, logits are scaled by 1 / sqrt(head_dim), and keys have no
    bias. An output of zeros at initialisation leaves the block as it is without.

    Attributes:
      settings: of the block.
    """

    settings: BlockSettings

    @nn.compact
    def __call__(
        self,
        x: Float[jax.Array, "B n C"],
        tokens: Float[jax.Array, "B T D"],
        mask: Bool[jax.Array, "B T"] | None = None,
    ) -> Float[jax.Array, "B n C"]:
        """Args:
        x: tokens of the pyramid.
        tokens: of the condition.
        mask: which of them are there, one at least; None is all.
        """
        width, heads, dtype = self.settings.width, self.settings.num_heads, self.settings.dtype
        head_dim, std = width // heads, init_std(width)

        def project(name: str, x: jax.Array, use_bias: bool = True) -> jax.Array:
            size = x.shape[-1]
            axes = ("embed", "heads", "head_dim")
            made = Linear((size,), (heads, head_dim), axes, std, dtype, use_bias, name=name)
            return made(x)

        plain, log_scale, normed = self.settings.cross_norm == "input", None, layer_norm(x)
        if plain:
            ones, zeros = nn.initializers.ones_init(), nn.initializers.zeros_init()
            gain, bias = (
                self.param(name, nn.with_logical_partitioning(init, ("embed",)), (width,))
                for name, init in (("norm_gain", ones), ("norm_bias", zeros))
            )
            normed = normed * gain + bias
        else:
            log_scale = self.param(
                "log_scale",
                nn.with_logical_partitioning(nn.initializers.constant(math.log(4.0)), ("heads",)),
                (heads,),
                jnp.float32,
            )
        q = project("query", normed.astype(dtype))
        k, v = project("key", tokens, use_bias=not plain), project("value", tokens)
        q, k = scaled_operands(q, k, head_dim**-0.5, log_scale)
        out = masked_attention(q, k, v, None if mask is None else mask[:, None, None])
        axes = ("heads", "head_dim", "embed")
        return Linear((heads, head_dim), (width,), axes, 0.0, dtype, name="out")(out)


def masked_attention(
    q: Float[jax.Array, "B q N H"],
    k: Float[jax.Array, "B k N H"],
    v: Float[jax.Array, "B k N H"],
    mask: Bool[jax.Array | np.ndarray, "#B #N #q k"] | None = None,
    dropped: float = 0.0,
    keys: jax.Array | None = None,
) -> Float[jax.Array, "B q N H"]:
    """softmax(q . k) v over the keys that a mask shows, with logits and softmax in float32.

    A share `dropped` of the softmax is 0, see `dropout`.

    For few keys under masks that are no intervals, or known in the program alone; levels take
    `block_attention`.
    """
    logits = jnp.einsum("bqnh,bknh->bnqk", q, k, preferred_element_type=jnp.float32)
    if mask is not None:
        logits = jnp.where(mask, logits, -jnp.inf)
    weights = dropout(jax.nn.softmax(logits, axis=-1), dropped, keys).astype(v.dtype)
    return jnp.einsum("bnqk,bknh->bqnh", weights, v)
