"""Multi-head self-attention over the pyramid, with or without a cache of earlier levels."""

from __future__ import annotations

import math

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp

from var_jax.context import KeySegment
from var_jax.kernels.block_attention import block_attention
from var_jax.kernels.block_attention.reference import scaled_operands
from var_jax.transformer.layers import Linear, init_std


@flax.struct.dataclass
class LevelCache:
    """Keys and values of one level, each [B, n_k, heads, head_dim] (stacked: [depth, B, ...]).

    With qk_norm the keys are already unit vectors.
    """

    keys: jax.Array
    values: jax.Array


class Attention(nn.Module):
    """Self-attention whose keys have no bias (official VAR).

    Attributes:
      width: C; head_dim is C / num_heads.
      num_heads: N.
      depth: number of blocks, which sets the scale of the output at initialisation.
      qk_norm: q and k are L2-normalised and q is multiplied by a learned factor for each
        head, exp(min(log_scale, ln 100)), log_scale = ln 4 at initialisation. Without it
        the logits are scaled by 0.25 / sqrt(head_dim).
      implementation: of `block_attention`; None picks the best for the backend.
      dtype: type of the computation.
    """

    width: int
    num_heads: int
    depth: int
    qk_norm: bool
    implementation: str | None = None
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        segments: tuple[KeySegment, ...],
        cache: tuple[LevelCache, ...] | None = None,
    ) -> tuple[jax.Array, LevelCache | None]:
        """Attends from x to itself, or to the cached levels and itself.

        Args:
          x: [B, L, C].
          segments: key interval of each run of queries; counts the cached keys first.
          cache: None to attend within x only; else earlier levels, coarsest first.

        Returns:
          [B, L, C], and with a cache also the keys and values of x.
        """
        heads, head_dim = self.num_heads, self.width // self.num_heads
        kernel = self.param(
            "qkv_kernel",
            nn.with_logical_partitioning(
                nn.initializers.normal(init_std(self.width)),
                ("embed", None, "heads", "head_dim"),
            ),
            (self.width, 3, heads, head_dim),
            jnp.float32,
        )
        bias = {
            name: self.param(
                f"{name}_bias",
                nn.with_logical_partitioning(nn.initializers.zeros_init(), ("heads", "head_dim")),
                (heads, head_dim),
                jnp.float32,
            )
            for name in ("q", "v")
        }
        log_scale = None
        if self.qk_norm:
            log_scale = self.param(
                "log_scale",
                nn.with_logical_partitioning(nn.initializers.constant(math.log(4.0)), ("heads",)),
                (heads,),
                jnp.float32,
            )

        # Three products [B L, C] x [C, N H]; each result is contiguous for the kernel.
        flat = x.astype(self.dtype).reshape(-1, self.width)
        kernel = kernel.astype(self.dtype).reshape(self.width, 3, self.width)
        q, k, v = ((flat @ kernel[:, i]).reshape(*x.shape[:2], heads, head_dim) for i in range(3))
        q = q + bias["q"].astype(self.dtype)
        v = v + bias["v"].astype(self.dtype)
        q, k, v = (
            nn.with_logical_constraint(t, ("batch", "length", "act_heads", None)) for t in (q, k, v)
        )

        new = None
        scale = 0.25 / math.sqrt(head_dim)
        if cache is not None:
            if self.qk_norm:
                # Normalise once, when the key enters the cache, not at every later level.
                q, k = scaled_operands(q, k, 1.0, log_scale)
                q, k = q.astype(self.dtype), k.astype(self.dtype)
                log_scale, scale = None, 1.0
            new = LevelCache(k, v)
            k = jnp.concatenate([*(level.keys for level in cache), k], axis=1)
            v = jnp.concatenate([*(level.values for level in cache), v], axis=1)

        out = block_attention(
            q,
            k,
            v,
            segments,
            scale=scale,
            log_scale=log_scale,
            implementation=self.implementation,
        )
        out = nn.with_logical_constraint(out, ("batch", "length", "act_heads", None))
        out = Linear(
            (heads, head_dim),
            (self.width,),
            ("heads", "head_dim", "embed"),
            std=init_std(self.width) / math.sqrt(2 * self.depth),
            dtype=self.dtype,
            name="out",
        )(out)
        return out, new
