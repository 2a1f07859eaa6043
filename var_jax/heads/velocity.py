"""A transformer that predicts the velocity of noisy latents, each level for itself (FlowAR)."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from var_jax.context import OwnScale, key_segments
from var_jax.kernels.block_attention import block_attention
from var_jax.pyramid import ScalePyramid
from var_jax.transformer.block import GatedMLP
from var_jax.transformer.layers import Linear, by_token, init_std, rms_norm
from var_jax.transformer.rotary import angles_by_level, rotate_pairs
from var_jax.transformer.time_embedding import TIME_FREQUENCIES, TimeEmbedding


class VelocityNet(nn.Module):
    """Blocks of attention within a level and MLP, modulated by the time and by each token's state.

    With `cross`, the time alone modulates the attention, time and state the MLP, and between the
    two a token attends to the states of its level (FlowAR-L and -H; without, FlowAR-S).

    Attributes:
      channels: c, of a latent.
      width: of the blocks.
      depth: number of blocks.
      num_heads: of the attention; a head's width is a multiple of 4.
      cross: see above.
      dtype: type of the computation; parameters are float32.
    """

    channels: int
    width: int
    depth: int
    num_heads: int
    cross: bool = False
    dtype: jnp.dtype = jnp.float32

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width % (4 * self.num_heads):
            raise ValueError(
                f"The flow head's width {self.width} is not divisible by 4 times its "
                f"{self.num_heads} heads; rotary positions turn pairs of rows and of columns."
            )

    @nn.compact
    def __call__(
        self,
        latents: Float[jax.Array, "B n c"],
        times: Float[jax.Array, "B k"],
        hidden: Float[jax.Array, "B n C"],
        pyramid: ScalePyramid,
    ) -> Float[jax.Array, "B n c"]:
        """The velocity, float32.

        Args:
          latents: noisy ones, of the tokens of k levels.
          times: of each level: 0 is data, 1 is noise.
          hidden: state of each token.
          pyramid: of the k levels.
        """
        width, dtype = self.width, self.dtype
        std = init_std(width)
        x = Linear((self.channels,), (width,), (None, "embed"), std, dtype, name="latents")(latents)
        time = TimeEmbedding(width, dtype, name="time")(times)
        state = Linear(
            hidden.shape[-1:],
            (width,),
            ("cond", "embed"),
            init_std(hidden.shape[-1]),
            dtype,
            name="state",
        )(hidden)
        hidden = hidden.astype(dtype)

        loop = nn.scan(
            lambda block, x, *rest: (block(x, *rest, pyramid), None),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(nn.broadcast,) * 3,
            length=self.depth,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        block = VelocityBlock(width, self.num_heads, self.cross, dtype, name="blocks")
        x, _ = loop(block, x, time, state, hidden)

        both = nn.silu(state + by_token(time, pyramid.sizes))
        two = Linear((width,), (2, width), ("cond", "adaln", "embed"), std, dtype, name="adaln")
        shift, scale = jnp.moveaxis(two(both), -2, 0)
        x = rms_norm(x) * (1 + scale) + shift
        # No velocity at initialisation.
        return Linear(
            (width,),
            (self.channels,),
            ("embed", None),
            0.0,
            dtype,
            sum_dtype=jnp.float32,
            name="out",
        )(x)

    @nn.nowrap
    def flops(self, pyramid: ScalePyramid, hidden: int) -> float:
        """Matrix-product operations for the tokens of these levels, with states of width C."""
        width, levels = self.width, pyramid.num_levels
        tokens, pairs = pyramid.length, sum(n * n for n in pyramid.sizes)
        token = (4 + 6) * width**2 + 3 * width * GatedMLP.hidden(width)
        attention = 2 * pairs * width
        level = 0
        if self.cross:
            token += (2 - 3) * width**2 + 2 * hidden * width
            attention *= 2
            level = 3 * width**2
        ends = (2 * self.channels + hidden + 2 * width) * width
        time = 2 * TIME_FREQUENCIES * width + width**2
        products = tokens * (self.depth * token + ends)
        return 2.0 * (products + self.depth * (attention + levels * level) + levels * time)


class VelocityBlock(nn.Module):
    """One block, see `VelocityNet`."""

    width: int
    num_heads: int
    cross: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x, time, state, hidden, pyramid: ScalePyramid):
        """Args:
        x: [B, n, width].
        time: [B, k, width], of each level.
        state: [B, n, width], of each token.
        hidden: [B, n, C], what `state` was made of.
        pyramid: of the k levels.
        """
        width, dtype = self.width, self.dtype

        def modulation(count: int, name: str, condition: jax.Array) -> list[jax.Array]:
            axes = ("cond", "adaln", "embed")
            made = Linear((width,), (count, width), axes, init_std(width), dtype, name=name)
            return list(jnp.moveaxis(made(nn.silu(condition)), -2, 0))

        both = state + by_token(time, pyramid.sizes)
        if self.cross:
            of_time = modulation(3, "adaln_attention", time)
            gamma1, scale1, shift1 = (by_token(x, pyramid.sizes) for x in of_time)
            gamma2, scale2, shift2 = modulation(3, "adaln_mlp", both)
        else:
            gamma1, gamma2, scale1, scale2, shift1, shift2 = modulation(6, "adaln", both)

        def attend(name: str, queries: jax.Array, keys: jax.Array) -> jax.Array:
            return LevelAttention(self.num_heads, dtype, name=name)(queries, keys, pyramid)

        y = rms_norm(x) * (1 + scale1) + shift1
        x = x + gamma1 * attend("attention", y, y)
        if self.cross:
            queries = rms_norm(x) * self._gain("query_norm", width)
            keys = rms_norm(hidden) * self._gain("key_norm", hidden.shape[-1])
            x = x + attend("cross_attention", queries, keys)
        y = rms_norm(x) * (1 + scale2) + shift2
        return x + gamma2 * GatedMLP(width, dtype, name="mlp")(y)

    def _gain(self, name: str, size: int) -> jax.Array:
        boxed = nn.with_logical_partitioning(nn.initializers.ones_init(), (None,))
        return self.param(name, boxed, (size,), jnp.float32).astype(self.dtype)


class LevelAttention(nn.Module):
    """Attention within each level with rotary positions; queries, keys, values have no bias."""

    num_heads: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self,
        queries: Float[jax.Array, "B n C"],
        keys: Float[jax.Array, "B n D"],
        pyramid: ScalePyramid,
    ) -> Float[jax.Array, "B n C"]:
        width = queries.shape[-1]
        head_dim = width // self.num_heads

        def project(name: str, x: jax.Array) -> jax.Array:
            size, axes = x.shape[-1], ("embed", "heads", "head_dim")
            made = Linear(
                (size,),
                (self.num_heads, head_dim),
                axes,
                init_std(size),
                self.dtype,
                use_bias=False,
                name=name,
            )(x)
            return nn.with_logical_constraint(made, ("batch", "length", "act_heads", None))

        angles = angles_by_level(pyramid, head_dim)
        q = rotate_pairs(project("query", queries), angles)
        k = rotate_pairs(project("key", keys), angles)
        segments = key_segments(pyramid, OwnScale())
        out = block_attention(q, k, project("value", keys), segments, scale=head_dim**-0.5)
        return Linear(
            (self.num_heads, head_dim),
            (width,),
            ("heads", "head_dim", "embed"),
            init_std(width),
            self.dtype,
            name="out",
        )(out)
