"""Mamba-2 (arXiv 2405.21060) between attention and MLP, over all levels (M-VAR, 2411.10433).

The sequence is read from its first token to its last, coarse levels first and a level row by row:
so it is causal within a level too.
"""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from var_jax.settings import Changeable
from var_jax.transformer.layers import Linear, init_std
from var_jax.transformer.ssd import chunked_ssd

#: Range of the step sizes and of the rates of decay at initialisation (mamba_ssm's defaults).
_STEPS, _RATES = (1e-3, 1e-1), (1.0, 16.0)
#: Standard deviation of the convolution's kernel at initialisation (M-VAR's code).
_CONV_STD = 0.02
_HEADS = ("heads", "head_dim")


@flax.struct.dataclass
class Mamba2State:
    """What the tokens so far leave to the next one, whatever their number.

    Attributes:
      x, bc: what the convolution read last, [B, conv_width - 1, N, H] and [.., 2, S].
      memory: float32 [B, N, H, S].
    """

    x: jax.Array
    bc: jax.Array
    memory: jax.Array


@dataclasses.dataclass(frozen=True)
class Mamba2:
    """Settings of the layer; see `Mixer`.

    Attributes:
      width: C.
      dtype: type of the computation; state and step sizes are float32.
      state_dim: S, numbers that a channel is remembered by.
      conv_width: tokens that the convolution before the recurrence reads.
      expand: the recurrence has expand * C channels.
      head_dim: H, channels of a head, which share a step size and a rate.
      chunk: see `chunked_ssd`.

    Raises:
      ValueError: the channels do not divide into heads.
    """

    float32_params: ClassVar[tuple[str, ...]] = (
        *("A_log", "D", "dt_bias", "conv_x", "conv_bc", "norm"),
    )

    width: int
    dtype: jnp.dtype = jnp.float32
    state_dim: int = 64
    conv_width: int = 4
    expand: int = 2
    head_dim: int = 64
    chunk: Changeable[int] = 128

    def __post_init__(self) -> None:
        if self.expand * self.width % self.head_dim:
            raise ValueError(
                f"Mamba-2 has {self.expand} * {self.width} channels, which do not divide into "
                f"heads of {self.head_dim}; change head_dim or expand of the mixer."
            )

    @property
    def num_heads(self) -> int:
        """N."""
        return self.expand * self.width // self.head_dim

    def layer(self, name: str) -> nn.Module:
        """See `Mixer`."""
        return Mamba2Layer(self, name=name)

    def flops(self, tokens: int) -> float:
        """See `Mixer`; the recurrence as it is defined, not as its chunks compute it."""
        inner = self.num_heads * self.head_dim
        projections = self.width * (3 * inner + 2 * self.state_dim + self.num_heads)
        return 2.0 * tokens * (projections + 2 * inner * self.state_dim)


class Mamba2Layer(nn.Module):
    """Projections, a short convolution, the recurrence, and a gated norm before the way out.

    Attributes:
      settings: see `Mamba2`.
    """

    settings: Mamba2

    @nn.compact
    def __call__(
        self, x: Float[jax.Array, "B n C"], state: Mamba2State | None = None
    ) -> tuple[Float[jax.Array, "B n C"], Mamba2State]:
        """See `Mixer`."""
        settings = self.settings
        width, heads, dtype = settings.width, settings.num_heads, settings.dtype
        shape, std = (heads, settings.head_dim), init_std(settings.width)
        if state is None:
            state = self._empty(x.shape[0])

        def project(name: str, out: tuple[int, ...], axes: tuple[str | None, ...], **kwargs):
            axes = ("embed", *axes)
            return Linear((width,), out, axes, std, dtype, use_bias=False, name=name, **kwargs)(x)

        z, inner = (_cut_by_heads(project(name, shape, _HEADS)) for name in ("z", "x"))
        bc = project("bc", (2, settings.state_dim), (None, None))
        dt = project("dt", (heads,), ("heads",), sum_dtype=jnp.float32)
        dt = jax.nn.softplus(dt + self._by_head("dt_bias", _init_dt_bias))

        conv = CausalConv(shape, _HEADS, settings.conv_width, dtype, name="conv_x")
        inner, tail_x = conv(inner, state.x)
        conv = CausalConv(bc.shape[2:], (None, None), settings.conv_width, dtype, name="conv_bc")
        bc, tail_bc = conv(bc, state.bc)

        rate = -jnp.exp(self._by_head("A_log", _init_log_rate))
        y, memory = chunked_ssd(
            inner, dt, rate, bc[:, :, 0], bc[:, :, 1], state.memory, settings.chunk
        )
        through = self._by_head("D", nn.initializers.ones)
        y = _cut_by_heads(y + through[:, None] * inner)
        y = GatedRMSNorm(shape, name="norm")(y, z).astype(dtype)
        y = Linear(shape, (width,), (*_HEADS, "embed"), std, dtype, use_bias=False, name="out")(y)
        return y, Mamba2State(tail_x, tail_bc, memory)

    def _by_head(self, name: str, init) -> Float[jax.Array, " N"]:
        """A parameter of one number for each head."""
        boxed = nn.with_logical_partitioning(init, ("heads",))
        return self.param(name, boxed, (self.settings.num_heads,), jnp.float32)

    def _empty(self, batch: int) -> Mamba2State:
        """Before the first token."""
        settings = self.settings
        shape, before = (settings.num_heads, settings.head_dim), settings.conv_width - 1
        return Mamba2State(
            jnp.zeros((batch, before, *shape), settings.dtype),
            jnp.zeros((batch, before, 2, settings.state_dim), settings.dtype),
            jnp.zeros((batch, *shape, settings.state_dim), jnp.float32),
        )


class CausalConv(nn.Module):
    """SiLU of a convolution of each channel by itself over a token and those before it.

    Attributes:
      shape: of a token's channels.
      axes: their logical names.
      width: tokens that are read.
      dtype: of the result; the sum is float32.
    """

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    width: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, before: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Args: x: [B, n, *shape]; before: [B, width - 1, *shape], the inputs before.

        Returns: as x, and as before: the last inputs.
        """
        init = nn.with_logical_partitioning(nn.initializers.normal(_CONV_STD), (None, *self.axes))
        kernel = self.param("kernel", init, (self.width, *self.shape), jnp.float32)
        init = nn.with_logical_partitioning(nn.initializers.zeros_init(), self.axes)
        bias = self.param("bias", init, self.shape, jnp.float32)
        length = x.shape[1]
        x = jnp.concatenate([before, x], axis=1)
        shifted = (x[:, i : i + length] * kernel[i] for i in range(self.width))
        return nn.silu(sum(shifted) + bias).astype(self.dtype), x[:, length:]


class GatedRMSNorm(nn.Module):
    """RMSNorm of x * SiLU(gate) over all heads, with a gain; float32.

    Attributes:
      shape: (N, H).
      eps: added to the mean square.
    """

    shape: tuple[int, int]
    eps: float = 1e-5

    @nn.compact
    def __call__(
        self, x: Float[jax.Array, "B n N H"], gate: Float[jax.Array, "B n N H"]
    ) -> Float[jax.Array, "B n N H"]:
        init = nn.with_logical_partitioning(nn.initializers.ones, _HEADS)
        gain = self.param("scale", init, self.shape, jnp.float32)
        x = x.astype(jnp.float32) * nn.silu(gate.astype(jnp.float32))
        mean_square = jnp.square(x).mean((-2, -1), keepdims=True)
        return x * jax.lax.rsqrt(mean_square + self.eps) * gain


def _cut_by_heads(x: Float[jax.Array, "B n N H"]) -> Float[jax.Array, "B n N H"]:
    """The same, laid over the mesh as attention's heads are."""
    return nn.with_logical_constraint(x, ("batch", "length", "act_heads", None))


def _init_log_rate(key, shape, dtype):
    """Log of rates that are uniform in their range."""
    low, high = _RATES
    return jnp.log(jax.random.uniform(key, shape, dtype, low, high))


def _init_dt_bias(key, shape, dtype):
    """What softplus turns into step sizes that are log-uniform in their range."""
    low, high = map(math.log, _STEPS)
    steps = jnp.exp(jax.random.uniform(key, shape, dtype, low, high))
    return steps + jnp.log(-jnp.expm1(-steps))
