"""Positions of any pyramid from one map (FlexVAR, arXiv 2502.20313)."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from var_jax.pyramid import ScalePyramid
from var_jax.resample import resize


def sine_map(side: int, width: int) -> Float[np.ndarray, "side side C"]:
    """sin(y w_i) in the even channels and cos(x w_i) in the odd ones; w_i = 10000^(-2 i / C)."""
    frequencies = 10000.0 ** (-np.arange(0, width, 2) / width)
    angles = np.arange(side)[:, None] * frequencies
    found = np.zeros((side, side, width))
    found[..., 0::2] = np.sin(angles)[:, None]
    found[..., 1::2] = np.cos(angles)[None, :, : width // 2]
    return found


class ResizedPositions(nn.Module):
    """A learned square map, which each level reads area-resized to its shape.

    Nothing says which level it is: so one set of parameters serves every pyramid.

    Attributes:
      width: C.
      side: of the map; levels may be larger or smaller.
    """

    width: int
    side: int = 32

    def setup(self) -> None:
        def init(key, shape, dtype):
            return jnp.asarray(sine_map(self.side, self.width), dtype)

        self.position = self.param(
            "position",
            nn.with_logical_partitioning(init, ("position", None, "embed")),
            (self.side, self.side, self.width),
            jnp.float32,
        )

    def added(self, pyramid: ScalePyramid, levels: range) -> Float[jax.Array, "n C"]:
        maps = [resize(self.position[None], pyramid.shapes[k], "area") for k in levels]
        return jnp.concatenate([x.reshape(-1, self.width) for x in maps])

    @nn.nowrap
    def rotate(
        self, x: Float[jax.Array, "B n N H"], pyramid: ScalePyramid, levels: range
    ) -> Float[jax.Array, "B n N H"]:
        """Nothing is turned."""
        return x
