"""The network of a diffusion of single tokens (MAR, arXiv 2406.11838, section 4)."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from var_jax.transformer.layers import Linear, init_std, layer_norm
from var_jax.transformer.time_embedding import TIME_FREQUENCIES, TimeEmbedding


class Denoiser(nn.Module):
    """An MLP with residual blocks, modulated by the time and by the token's state.

    Nothing is predicted at initialisation, and blocks are the identity.

    Attributes:
      channels: c, of a latent.
      width: of the blocks.
      depth: number of blocks.
      dtype: type of the computation; parameters are float32.
    """

    channels: int
    width: int
    depth: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        latents: Float[jax.Array, "B n c"],
        times: Int[jax.Array, "B n"],
        hidden: Float[jax.Array, "B n C"],
    ) -> tuple[Float[jax.Array, "B n c"], Float[jax.Array, "B n c"]]:
        """The noise in latents, and where their variance lies between its bounds, float32.

        Args:
          latents: noisy ones.
          times: in 0 .. 999, from the least noise to the most.
          hidden: state of each token.

        Returns:
          The noise; and a number, -1 for the least variance of a step, 1 for the largest.
        """
        width, dtype = self.width, self.dtype

        def embed(name: str, x: jax.Array, axis: str | None) -> jax.Array:
            size = x.shape[-1]
            return Linear((size,), (width,), (axis, "embed"), init_std(size), dtype, name=name)(x)

        x = embed("latents", latents, None)
        # The middle of a thousandth, which rounding cannot move to another.
        time = TimeEmbedding(width, dtype, name="time")((times + 0.5) / 1000)
        condition = nn.silu(time + embed("state", hidden, "cond"))
        loop = nn.scan(
            lambda block, x, condition: (block(x, condition), None),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=self.depth,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        x, _ = loop(DenoiserBlock(width, dtype, name="blocks"), x, condition)
        shift, scale = _modulation(2, width, dtype, condition)
        x = (layer_norm(x) * (1 + scale) + shift).astype(dtype)
        both = Linear(
            (width,),
            (2, self.channels),
            ("embed", None, None),
            0.0,
            dtype,
            sum_dtype=jnp.float32,
            name="out",
        )(x)
        return both[..., 0, :], both[..., 1, :]

    @nn.nowrap
    def flops(self, tokens: int, hidden: int) -> float:
        """Matrix-product operations for so many tokens with states of width C."""
        width = self.width
        ends = (3 * self.channels + hidden + 2 * width) * width
        time = 2 * TIME_FREQUENCIES * width + width**2
        return 2.0 * tokens * (ends + time + self.depth * 5 * width**2)


class DenoiserBlock(nn.Module):
    """One block, see `Denoiser`."""

    width: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, x: Float[jax.Array, "B n C"], condition: Float[jax.Array, "B n C"]
    ) -> Float[jax.Array, "B n C"]:
        """The block's output; condition: after its SiLU."""
        width, dtype = self.width, self.dtype

        def per_channel(name: str, init: nn.initializers.Initializer) -> jax.Array:
            boxed = nn.with_logical_partitioning(init, (None,))
            return jnp.asarray(self.param(name, boxed, (width,)))

        def linear(name: str, axes: tuple[str, str], x: jax.Array) -> jax.Array:
            return Linear((width,), (width,), axes, init_std(width), dtype, name=name)(x)

        shift, scale, gate = _modulation(3, width, dtype, condition)
        y = layer_norm(x) * per_channel("scale", nn.initializers.ones)
        y = (y + per_channel("bias", nn.initializers.zeros)) * (1 + scale) + shift
        y = nn.silu(linear("up", ("embed", "mlp"), y.astype(dtype)))
        y = nn.with_logical_constraint(y, ("batch", "length", "act_mlp"))
        return x + gate * linear("down", ("mlp", "embed"), y)


def _modulation(count: int, width: int, dtype: jnp.dtype, condition: jax.Array) -> list[jax.Array]:
    """So many vectors [B, n, C]; zero at initialisation."""
    axes = ("cond", "adaln", "embed")
    return list(
        jnp.moveaxis(
            Linear((width,), (count, width), axes, 0.0, dtype, name="adaln")(condition), -2, 0
        )
    )
