"""The time of a noisy token as a vector (DiT, arXiv 2212.09748)."""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from var_jax.transformer.layers import Linear

#: Sines and cosines of the time, which is read in thousandths.
TIME_FREQUENCIES = 128


class TimeEmbedding(nn.Module):
    """Sines and cosines of whole thousandths of the time, Linear, SiLU, Linear."""

    width: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, times: Float[jax.Array, "B k"]) -> Float[jax.Array, "B k C"]:
        size = TIME_FREQUENCIES
        frequencies = np.exp(-math.log(10_000) * np.arange(size, dtype=np.float32) / size)
        angles = jnp.floor(times * 1000)[..., None] * frequencies.astype(np.float32)
        x = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], -1)
        axes = (None, "embed")
        x = Linear((2 * size,), (self.width,), axes, 0.02, self.dtype, name="up")(x)
        axes = ("cond", "embed")
        return Linear((self.width,), (self.width,), axes, 0.02, self.dtype, name="out")(nn.silu(x))
