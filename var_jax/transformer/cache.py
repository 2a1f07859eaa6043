"""What generation carries from level to level: keys and values of the levels before, and states."""

from __future__ import annotations

from typing import Any, Protocol

import flax
import jax
import jax.numpy as jnp
from jaxtyping import Int

#: Blocks that share one length of cache, in the order in which they run.
Run = tuple[int, ...]


@flax.struct.dataclass
class KeysValues:
    """Keys and values of one level in the blocks of a run.

    With qk_norm the keys are already unit vectors; rotary positions have been applied.

    Attributes:
      keys, values: [blocks, B, n, heads * head_dim]: the kernels read heads side by side.
      queries: [blocks, B, n, heads, head_dim] of the newest level where a cache policy asks for
        them; else None.
    """

    keys: jax.Array
    values: jax.Array
    queries: jax.Array | None = None

    @property
    def length(self) -> int:
        """Number of keys, which may be fewer than the level has tokens."""
        return self.keys.shape[-2]


@flax.struct.dataclass
class Cache:
    """What a pass over later levels reads of the earlier ones; the batch is axis 1 of every array.

    Attributes:
      runs: for each run of blocks, the levels that later levels still see, coarsest first.
      modulation: of the blocks, [blocks, B, 6, C] for each run (9 with a mixer): it depends on the
        condition alone, and its matrices are a third of a block's parameters. None before the
        first pass.
      states: of the blocks' mixers after the newest level, see `Mixer`, [blocks, B, ...] for each
        run. None before the first pass, and where the blocks have no mixer.
      first: index of the first level that is held.
    """

    runs: tuple[tuple[KeysValues, ...], ...] = ()
    modulation: tuple[Any, ...] | None = None
    states: tuple[Any, ...] | None = None
    first: int = flax.struct.field(pytree_node=False, default=0)

    def reindex(self, rows: Int[jax.Array, " b"]) -> Cache:
        """The cache of these rows of the batch, which may repeat."""
        return jax.tree.map(lambda x: x[:, rows], self)

    def of_blocks(self, blocks: Run) -> Cache:
        """That of some blocks, as one run, from a cache of all blocks as one run."""
        rows = jnp.array(blocks)
        return jax.tree.map(lambda x: x[rows], self)


class CachePolicy(Protocol):
    """A hashable rule of what a cache keeps."""

    def runs(self, num_blocks: int) -> tuple[Run, ...]:
        """Which blocks share a length; each run is compiled as one loop."""

    def compress(
        self, levels: tuple[KeysValues, ...], run: int, level: int
    ) -> tuple[KeysValues, ...]:
        """What a run of blocks keeps once a level has been processed.

        Args:
          levels: of the cache, the newest last and with its queries.
          run: number of the run.
          level: the newest level.

        Returns:
          As many levels, of any lengths (0 too).
        """
