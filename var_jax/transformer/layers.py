"""Linear maps, normalisation and adaptive layer norm with logical axis names."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float


def init_std(width: int) -> float:
    """Standard deviation of every matrix and embedding at initialisation: sqrt(1 / (3 C)).

    The official code draws from a normal truncated at +-2, which at this standard
    deviation is a plain normal.
    """
    return (1 / (3 * width)) ** 0.5


class Linear(nn.Module):
    """y = x W + b over the last axis, or over the last `len(in_shape)` axes.

    Attributes:
      in_shape: sizes of the axes that are contracted.
      out_shape: sizes of the axes that replace them.
      axes: logical names of the kernel's axes, in_shape then out_shape.
      std: standard deviation of the kernel at initialisation.
      dtype: type of the operands of the product; parameters are float32.
      use_bias: adds a bias of shape out_shape, zero at initialisation.
      sum_dtype: type of the sums, the bias and the result; None is dtype.
    """

    in_shape: Sequence[int]
    out_shape: Sequence[int]
    axes: Sequence[str | None]
    std: float
    dtype: jnp.dtype = jnp.float32
    use_bias: bool = True
    sum_dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        num_in = len(self.in_shape)
        kernel = self.param(
            "kernel",
            nn.with_logical_partitioning(nn.initializers.normal(self.std), tuple(self.axes)),
            (*self.in_shape, *self.out_shape),
            jnp.float32,
        )
        # Two plain matrices: XLA's CPU backward pass of a product over [B, L] is much slower.
        batch = x.shape[: x.ndim - num_in]
        flat = x.astype(self.dtype).reshape(math.prod(batch), math.prod(self.in_shape))
        kernel = kernel.astype(self.dtype).reshape(math.prod(self.in_shape), *self.out_shape)
        sum_dtype = self.sum_dtype or self.dtype
        y = jnp.tensordot(flat, kernel, 1, preferred_element_type=sum_dtype)
        y = y.reshape(*batch, *self.out_shape)
        if self.use_bias:
            bias = self.param(
                "bias",
                nn.with_logical_partitioning(
                    nn.initializers.zeros_init(), tuple(self.axes[num_in:])
                ),
                tuple(self.out_shape),
                jnp.float32,
            )
            y = y + bias.astype(sum_dtype)
        return y


def layer_norm(x: jax.Array, eps: float = 1e-6) -> jax.Array:
    """Normalises the last axis to mean 0 and variance 1, without gain or bias; float32."""
    x = x.astype(jnp.float32)
    mean = x.mean(-1, keepdims=True)
    variance = jnp.square(x - mean).mean(-1, keepdims=True)
    return (x - mean) * jax.lax.rsqrt(variance + eps)


def rms_norm(x: jax.Array) -> jax.Array:
    """The last axis over its root mean square, in x's type."""
    wide = x.astype(jnp.float32)
    return (wide * jax.lax.rsqrt(jnp.square(wide).mean(-1, keepdims=True) + 1e-6)).astype(x.dtype)


def folded(keys: jax.Array | None, number: int) -> jax.Array | None:
    """Other keys of the same examples [B]; None stays."""
    return None if keys is None else jax.vmap(jax.random.fold_in, (0, None))(keys, number)


def dropout(
    x: Float[jax.Array, " *n"], rate: float, keys: jax.Array | None
) -> Float[jax.Array, " *n"]:
    """x with a share of its values 0 and the others larger by as much (Srivastava et al., 2014).

    Args:
      x: [B, ...].
      rate: the share that is 0, in [0, 1).
      keys: one PRNG key for each example [B]; None leaves x as it is, as in evaluation.
    """
    if keys is None or not rate:
        return x
    kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, x.shape[1:]))(keys)
    return jnp.where(kept, x / (1 - rate), 0).astype(x.dtype)


def by_token(x: Float[jax.Array, "B k *C"], sizes: tuple[int, ...]) -> Float[jax.Array, "B n *C"]:
    """What belongs to runs of so many tokens each, at each of their tokens."""
    # Runs of one size are a broadcast, not a gather.
    return jnp.repeat(x, sizes[0] if len(set(sizes)) == 1 else np.array(sizes), axis=1)


def per_token(x: jax.Array) -> jax.Array:
    """[B, C] -> [B, 1, C], which is the same for all tokens; [B, n, C] stays."""
    return x[:, None] if x.ndim == 2 else x


def modulate(
    x: jax.Array,
    scale: jax.Array,
    shift: jax.Array,
    norm: Callable[[jax.Array], jax.Array] = layer_norm,
) -> jax.Array:
    """norm(x) * (1 + scale) + shift; float32.

    Args:
      x: [B, n, C].
      scale, shift: [B, C], or [B, n, C] where tokens differ.
      norm: of the last axis.
    """
    scale, shift = per_token(scale.astype(jnp.float32)), per_token(shift.astype(jnp.float32))
    return norm(x.astype(jnp.float32)) * (1 + scale) + shift


@dataclasses.dataclass(frozen=True)
class AdaLNInit:
    """Factors on the modulation weights at initialisation (`aln` and `alng` officially)."""

    scale_shift: float = 0.5
    gamma: float = 1e-3


class Modulation(nn.Module):
    """The adaptive layer norm's parameters of one block, (DiT, arXiv 2212.09748).

    Three vectors modulate each branch: gamma, scale and shift. Separate: Linear(SiLU(condition))
    makes them. Shared (`shared`): the condition is these vectors already, the same for all blocks,
    and the block adds a learned offset.

    Attributes:
      width: C.
      shared: see above.
      init: factors at initialisation.
      dtype: type of the computation.
      branches: b, of the block; attention and MLP by default.
    """

    width: int
    shared: bool
    init: AdaLNInit
    dtype: jnp.dtype = jnp.float32
    branches: int = 2

    @nn.compact
    def __call__(self, condition: jax.Array) -> jax.Array:
        """Args: condition: [B, C], or [B, 3 b, C] if shared; [B, n, ...] where tokens differ.

        Returns: [B, 3 b, C] or [B, n, 3 b, C]: gamma1, gamma2, .., scale1, .., shift1, ..
        """
        count = 3 * self.branches
        factors = [self.init.gamma] * self.branches + [self.init.scale_shift] * 2 * self.branches
        factor = jnp.array(factors)
        if self.shared:
            std = self.width**-0.5

            def init_offset(key, shape, dtype):
                return std * factor[:, None] * jax.random.normal(key, shape, dtype)

            offset = self.param(
                "offset",
                nn.with_logical_partitioning(init_offset, ("adaln", "embed")),
                (count, self.width),
                jnp.float32,
            )
            vectors = condition + offset.astype(self.dtype)
        else:
            std = init_std(self.width)

            def init_kernel(key, shape, dtype):
                return std * factor[:, None] * jax.random.normal(key, shape, dtype)

            kernel = self.param(
                "kernel",
                nn.with_logical_partitioning(init_kernel, ("cond", "adaln", "embed")),
                (self.width, count, self.width),
                jnp.float32,
            )
            bias = self.param(
                "bias",
                nn.with_logical_partitioning(nn.initializers.zeros_init(), ("adaln", "embed")),
                (count, self.width),
                jnp.float32,
            )
            x = nn.silu(condition).astype(self.dtype)
            kernel = kernel.astype(self.dtype)
            # Plain products: the gradients of a single one transpose the kernel on CPUs.
            vectors = jnp.stack([x @ kernel[:, i] for i in range(count)], axis=-2)
            vectors = vectors + bias.astype(self.dtype)
        tokens = ("length",) if vectors.ndim == 4 else ()
        return nn.with_logical_constraint(vectors, ("batch", *tokens, None, "act_embed"))


class LearnedNorms(nn.Module):
    """What a block's branches are modulated by without a condition: gain and bias of their norms.

    The gain is 1 + scale, and no branch is gated.

    Attributes:
      width: C.
      dtype: type of the computation.
      branches: b, of the block.
    """

    width: int
    dtype: jnp.dtype = jnp.float32
    branches: int = 2

    @nn.compact
    def __call__(self) -> jax.Array:
        """[1, 3 b, C] as `Modulation` has it."""
        shape = (self.branches, self.width)
        zeros = nn.with_logical_partitioning(nn.initializers.zeros_init(), (None, "embed"))
        scale, bias = (self.param(name, zeros, shape, jnp.float32) for name in ("scale", "bias"))
        return jnp.concatenate([jnp.ones(shape), scale, bias])[None].astype(self.dtype)


class FinalAdaLN(nn.Module):
    """The adaptive layer norm before the head: scale and shift, no gate.

    Attributes:
      width: C.
      init: factors at initialisation.
    """

    width: int
    init: AdaLNInit

    @nn.compact
    def __call__(self, x: jax.Array, condition: jax.Array) -> jax.Array:
        """Args: x: [B, n, C]; condition: [B, C] or [B, n, C]. Returns: float32 [B, n, C]."""
        scale_shift = Linear(
            (self.width,),
            (2, self.width),
            ("cond", "adaln", "embed"),
            std=self.init.scale_shift * init_std(self.width),
            name="modulation",
        )(nn.silu(condition))
        return modulate(x, scale_shift[..., 0, :], scale_shift[..., 1, :])
