"""What both TPU kernels share: how heads lie in lanes, and the order of emitted work."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jaxtyping import Array, Float

from var_jax.kernels.block_attention import tiling

LOG2_E = 1.4426950408889634
LN_2 = 0.6931471805599453
#: Square of the smallest norm divided by, as in torch.nn.functional.normalize (eps = 1e-12).
MIN_SQUARE = 1e-24
MASKED = -1e30


@dataclasses.dataclass(frozen=True)
class Layout:
    """What the kernels of this package know about their operands before they run.

    Attributes:
      head_dim: H, which divides 128 or is a multiple of it.
      heads: heads in one program.
      num_heads: N.
      normalize: L2-normalise q and k.
      dtype: of the operands of every matrix product.
    """

    head_dim: int
    heads: int
    num_heads: int
    normalize: bool
    dtype: jnp.dtype

    @property
    def width(self) -> int:
        """Lanes of one program's block."""
        return self.heads * self.head_dim

    @property
    def groups(self) -> int:
        """Programs needed for all heads."""
        return -(-self.num_heads // self.heads)

    def dot(self, a: jax.Array, b: jax.Array, axes: tuple[int, int]) -> jax.Array:
        """float32 product of two matrices, contracting axes[0] of a with axes[1] of b."""
        full = self.dtype == jnp.float32
        return lax.dot_general(
            a,
            b,
            (((axes[0],), (axes[1],)), ((), ())),
            precision=lax.Precision.HIGHEST if full else lax.Precision.DEFAULT,
            preferred_element_type=jnp.float32,
        )

    def lanes_of(self, head: int, x: Float[Array, "rows width"]) -> Float[Array, "rows width"]:
        """[rows, width] -> the same with the lanes of all other heads set to zero."""
        if self.heads == 1:
            return x
        lane = lax.broadcasted_iota(jnp.int32, x.shape, 1)
        mine = (lane >= head * self.head_dim) & (lane < (head + 1) * self.head_dim)
        return jnp.where(mine, x, 0)

    def real_lanes(self, x: Float[Array, "rows width"]) -> Float[Array, "rows width"]:
        """Zeroes the lanes beyond the last head, which a partial block leaves undefined."""
        if self.num_heads % self.heads == 0:
            return x
        left = (self.num_heads - pl.program_id(1) * self.heads) * self.head_dim
        return jnp.where(lax.broadcasted_iota(jnp.int32, x.shape, 1) < left, x, 0)

    def head_sums(self, x: Float[Array, "rows width"]) -> Float[Array, "rows width"]:
        """[rows, width] -> the sum over each head's lanes, broadcast to those lanes.

        Computed on the matrix unit, whose result is broadcast already. The operand is rounded
        to the operands' dtype, which the sum over a head averages out.
        """
        i = lax.broadcasted_iota(jnp.int32, (self.width, self.width), 0)
        j = lax.broadcasted_iota(jnp.int32, (self.width, self.width), 1)
        same = functools.reduce(
            jnp.logical_or,
            (
                (i >= a) & (i < a + self.head_dim) & (j >= a) & (j < a + self.head_dim)
                for a in range(0, self.width, self.head_dim)
            ),
        )
        ones = jnp.where(same, 1.0, 0.0).astype(self.dtype)
        return self.dot(x.astype(self.dtype), ones, (1, 0))

    def row_sums(self, head: int, x: Float[Array, "rows width"]) -> Float[Array, "1 rows"]:
        """f32 [rows, width] -> [1, rows]: the sum over one head's lanes, rows now in lanes."""
        ones = self.lanes_of(head, jnp.ones((tiling.SUBLANES, self.width), jnp.float32))
        exact = lax.Precision.HIGHEST
        return lax.dot_general(ones, x, (((1,), (1,)), ((), ())), precision=exact)[:1]

    def inverse_norms(self, x: Float[Array, "rows width"]) -> Float[Array, "rows width"]:
        """f32 [rows, width] -> 1 / L2 norm of each head's lanes."""
        return lax.rsqrt(jnp.maximum(self.head_sums(x * x), MIN_SQUARE))

    def scale_row(self, scale_ref) -> Float[Array, "1 width"]:
        """f32 [1, width]: the logit scale of each lane's head."""
        lane = lax.broadcasted_iota(jnp.int32, (1, self.width), 1)
        first = pl.program_id(1) * self.heads
        row = jnp.full((1, self.width), scale_ref[first], jnp.float32)
        for h in range(1, self.heads):
            row = jnp.where(lane < h * self.head_dim, row, scale_ref[first + h])
        return row


def cost(layout: Layout, batch: int, scores: int, products: int, *arrays) -> pl.CostEstimate:
    """What XLA's scheduler and cost analysis should know about a kernel.

    Args:
      layout: of the heads.
      batch: B.
      scores: (query, key) pairs computed for one head.
      products: matrix products over them, 2 forward, 5 backward.
      *arrays: operands and results.
    """
    total = batch * layout.num_heads * scores
    return pl.CostEstimate(
        flops=2 * products * layout.head_dim * total,
        transcendentals=total,
        bytes_accessed=sum(x.size * x.dtype.itemsize for x in arrays),
    )


def pipeline(num_items: int, stages: Sequence[Callable[[int, Any], Any]]) -> None:
    """Emits stage s of item i after stage s - 1 of item i + 1.

    The compiler's scheduler hardly reorders across a matrix product and the softmax that waits
    for it, so the products of the next item are placed in front of that softmax here.
    """
    values: dict[int, Any] = {}
    for step in range(num_items + len(stages) - 1):
        for s, stage in enumerate(stages):
            i = step - s
            if 0 <= i < num_items:
                values[i] = stage(i, values.get(i))
