"""Two-dimensional rotary positions on one grid for all levels (Infinity, arXiv 2412.04431)."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from var_jax import aspect_ratios
from var_jax.pyramid import ScalePyramid
from var_jax.transformer.layers import init_std

#: Side of the grid on which the cells of `angles_by_level` stand, whatever the level's own.
_LEVEL_GRID = 16


def grid_positions(size: int, grid: int) -> np.ndarray:
    """Where on an axis of `grid` cells each of `size` cells begins: i * grid / size, rounded.

    Halves go to the even neighbour, after a product in float32, as in the official code.

    Returns:
      int32 [size].
    """
    step = np.float32(grid / size)
    return np.round(np.arange(size, dtype=np.float32) * step).astype(np.int32)


def _quarter_turn(size: int) -> np.ndarray:
    """float32 [size, size]: what turns each pair (a, b) of a row to (-b, a)."""
    return np.kron(np.eye(size // 2), [[0, 1], [-1, 0]]).astype(np.float32)


def rotate_pairs(x: Float[jax.Array, "B n N H"], angles: np.ndarray) -> Float[jax.Array, "B n N H"]:
    """Turns the channel pairs (0, 1), (2, 3), ... by angles [n, H / 2], in float32."""
    # [n, H / 2] -> [n, 1, H], both channels of a pair by the same angle.
    angles = np.repeat(angles, 2, axis=-1)[:, None]
    # (a, b) -> (-b, a) as an exact product: of all ways to exchange neighbours a TPU's compiler
    # makes this one without arrays in between, a fifth of the memory traffic of a shift.
    turned = jnp.einsum(
        "bnkh,hj->bnkj",
        x,
        jnp.asarray(_quarter_turn(x.shape[-1]), x.dtype),
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )
    cos, sin = (f(angles).astype(np.float32) for f in (np.cos, np.sin))
    return (x.astype(jnp.float32) * cos + turned * sin).astype(x.dtype)


class Rotary2D(nn.Module):
    """Pairs of channels (0, 1), (2, 3), ... turn by angles that grow with the position.

    The first half of the pairs turns with the row, the second with the column, by base ** (-2 i /
    (H / 2)) for pair i of a half. A level's cells stand at the cells of the finest grid where they
    begin, so that tokens over the same part of the image have positions near each other. They serve
    any pyramid.

    Attributes:
      width: C, of the level embeddings.
      grid: (rows, columns) of the finest grid; () is the grid of the pyramid that is passed. With
        several pyramids give the largest: positions are then those of training. Of an oblong
        pyramid it is that of as large an oblong image, see `aspect_ratios.grid`.
      num_levels: so many levels, from the first, have an embedding that is added to their tokens,
        as in the released models; 0 is none, and no parameter at all.
      base: of the angles.
    """

    width: int
    grid: tuple[int, ...] = ()
    num_levels: int = 0
    base: float = 10000.0

    def setup(self) -> None:
        if self.num_levels:
            init = nn.initializers.normal(init_std(self.width))
            boxed = nn.with_logical_partitioning(init, ("level", "embed"))
            self.level = self.param("level", boxed, (self.num_levels, self.width), jnp.float32)

    def added(self, pyramid: ScalePyramid, levels: range) -> Float[jax.Array, "n C"] | None:
        """The levels' embeddings, where there are any.

        Raises:
          ValueError: the pyramid has more levels than there are embeddings.
        """
        if not self.num_levels:
            return None
        if pyramid.num_levels > self.num_levels:
            raise ValueError(
                f"These positions have embeddings of {self.num_levels} levels, but the pyramid has "
                f"{pyramid.num_levels}; give positions.num_levels as many."
            )
        return jnp.take(self.level, pyramid.level_ids[pyramid.tokens(levels)], axis=0)

    @nn.nowrap
    def rotate(
        self, x: Float[jax.Array, "B n N H"], pyramid: ScalePyramid, levels: range
    ) -> Float[jax.Array, "B n N H"]:
        """Queries or keys, turned in float32.

        Raises:
          ValueError: the head's size is no multiple of four.
        """
        return rotate_pairs(x, self.angles(pyramid, x.shape[-1])[pyramid.tokens(levels)])

    @nn.nowrap
    def angles(self, pyramid: ScalePyramid, head_dim: int) -> np.ndarray:
        """float64 [L, head_dim / 2], of each token's pairs."""
        if head_dim % 4:
            raise ValueError(
                f"Rotary positions of rows and columns need a multiple of 4 channels a head, got "
                f"{head_dim}; change model.width or model.num_heads."
            )
        half = head_dim // 2
        frequencies = self.base ** (-np.arange(0, half, 2) / half)
        grid, tokens = pyramid.grid, []
        if self.grid:
            rows, columns = self.grid
            grid = aspect_ratios.grid((rows, columns), pyramid.shapes[-1])
        for shape in pyramid.shapes:
            axes = (grid_positions(n, g) for n, g in zip(shape, grid, strict=True))
            cells = np.meshgrid(*axes, indexing="ij")
            turns = [axis.reshape(-1, 1) * frequencies for axis in cells]
            tokens.append(np.concatenate(turns, -1))
        return np.concatenate(tokens)


@functools.cache
def angles_by_level(pyramid: ScalePyramid, head_dim: int) -> np.ndarray:
    """float32 [n, head_dim / 2]: half of the pairs turn by the row, the others by the column."""
    quarter = head_dim // 4
    frequencies = 10_000.0 ** (-np.arange(quarter) / quarter)
    found = []
    for h, w in pyramid.shapes:
        rows, columns = np.meshgrid(np.arange(h) / h, np.arange(w) / w, indexing="ij")
        turns = [_LEVEL_GRID * x.reshape(-1, 1) * frequencies for x in (rows, columns)]
        found.append(np.concatenate(turns, 1))
    return np.concatenate(found).astype(np.float32)
