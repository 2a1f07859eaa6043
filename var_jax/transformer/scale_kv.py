"""ScaleKV (arXiv 2505.19602): a cache that keeps the keys which the newest level looks at.

Most blocks look at little beyond their own level. They get a small budget of cached keys, a few
blocks (the drafters) a large one. What stays is chosen after each level, by each head for itself.
"""

from __future__ import annotations

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from var_jax.pyramid import ScalePyramid
from var_jax.transformer.cache import KeysValues, Run


@dataclasses.dataclass(frozen=True)
class ScaleKV:
    """A cache policy for contexts in which a level sees all coarser ones.

    Nothing happens while the cache has at most `base_capacity` keys. Afterwards a run of blocks
    keeps its budget: always the keys of the observation window, tokens spread over the newest
    level; and of the others those with the highest sum of logits with the window's queries, each
    key judged by the best of its neighbourhood. Queries are as the attention sees them, with their
    norm, scale and rotation.

    Attributes:
      pyramid: of the model.
      drafters: blocks with a large budget.
      large, small: keys kept after each level; a tuple gives one number for each level.
      base_capacity: see above.
      window: tokens observed, a square number.
      neighbourhood: width of the maximum over scores, an odd number.
    """

    pyramid: ScalePyramid
    drafters: tuple[int, ...]
    large: int | tuple[int, ...]
    small: int | tuple[int, ...]
    base_capacity: int = 650
    window: int = 16
    neighbourhood: int = 5

    def __post_init__(self) -> None:
        if math.isqrt(self.window) ** 2 != self.window or self.window < 1:
            raise ValueError(f"The window must be a square number, got {self.window}.")
        if self.neighbourhood % 2 == 0:
            raise ValueError(f"The neighbourhood must be odd, got {self.neighbourhood}.")
        for name in ("large", "small"):
            budgets = getattr(self, name)
            count = self.pyramid.num_levels
            if isinstance(budgets, tuple) and len(budgets) != count:
                raise ValueError(
                    f"{name} has {len(budgets)} budgets, but the pyramid has {count} levels; give "
                    "one for each level or a single number."
                )
            begun = [self._budget(name, k) for k in range(count) if self._begun(k)]
            least = min(begun, default=self.window)
            if least < self.window:
                raise ValueError(
                    f"{name} keeps {least} keys, fewer than the window's {self.window}, which "
                    "always stay."
                )

    def runs(self, num_blocks: int) -> tuple[Run, ...]:
        """See `CachePolicy`: neighbours of one budget run together."""
        if any(not 0 <= block < num_blocks for block in self.drafters):
            raise ValueError(
                f"drafters are {self.drafters}, but the blocks are 0..{num_blocks - 1}."
            )
        groups = itertools.groupby(range(num_blocks), key=lambda block: block in self.drafters)
        return tuple(tuple(blocks) for _, blocks in groups)

    def compress(
        self, levels: tuple[KeysValues, ...], run: int, level: int
    ) -> tuple[KeysValues, ...]:
        """See `CachePolicy`. What is left of all levels stands in the first; the others are empty.

        Raises:
          ValueError: a level is missing.
        """
        if not levels:  # After the last level nothing is cached.
            return levels
        if len(levels) != level + 1:
            raise ValueError(
                f"ScaleKV keeps keys of all levels up to {level}, but the context dropped "
                f"{level + 1 - len(levels)} of them; take the context block_causal."
            )
        budget = self._budget("large" if self._is_drafted(run) else "small", level)
        count = sum(entry.length for entry in levels)
        if not self._begun(level) or count <= budget:
            return tuple(entry.replace(queries=None) for entry in levels)
        queries = levels[-1].queries
        keys, values = (
            jnp.concatenate([getattr(entry, name) for entry in levels], axis=2).reshape(
                *queries.shape[:2], count, queries.shape[3], -1
            )
            for name in ("keys", "values")
        )
        kept = self.select(keys, queries, level, budget)
        entries = [self._rows(keys, values, kept)]
        empty = jnp.zeros((*kept.shape[:2], 0, kept.shape[3]), jnp.int32)
        entries += [self._rows(keys, values, empty) for _ in levels[1:]]
        return tuple(entries)

    def select(
        self,
        keys: Float[jax.Array, "blocks B m heads H"],
        queries: Float[jax.Array, "blocks B n heads H"],
        level: int,
        budget: int,
    ) -> Int[jax.Array, "blocks B budget heads"]:
        """Which keys stay, ascending.

        Args:
          keys: of the cache, those of `level` last.
          queries: of `level`.
          level: the newest.
          budget: how many stay; fewer than there are.
        """
        count = keys.shape[2]
        observed = self.observed(level)
        in_cache = count - self.pyramid.sizes[level] + observed
        window = queries[:, :, observed].astype(jnp.float32).sum(2)
        scores = jnp.einsum("lbnh,lbmnh->lbnm", window, keys.astype(jnp.float32))
        is_window = np.zeros(count, bool)
        is_window[in_cache] = True
        scores = jnp.where(is_window, -jnp.inf, scores)
        side = self.neighbourhood // 2
        scores = jax.lax.reduce_window(
            scores,
            -jnp.inf,
            jax.lax.max,
            (1, 1, 1, self.neighbourhood),
            (1, 1, 1, 1),
            ((0, 0), (0, 0), (0, 0), (side, side)),
        )
        others = np.flatnonzero(~is_window)
        best = jax.lax.top_k(scores[..., others], budget - len(observed))[1]
        always = jnp.broadcast_to(jnp.asarray(in_cache), (*best.shape[:-1], len(in_cache)))
        kept = jnp.concatenate([jnp.asarray(others)[best], always], axis=-1)
        return jnp.sort(kept, axis=-1).swapaxes(2, 3).astype(jnp.int32)

    def observed(self, level: int) -> np.ndarray:
        """The tokens of a level that make the window: centres of the cells of a grid over it, or
        the last ones of a level that is smaller than the grid."""
        grid, shape = math.isqrt(self.window), self.pyramid.shapes[level]
        size = self.pyramid.sizes[level]
        if min(shape) < grid:
            return np.arange(max(0, size - self.window), size)
        rows, columns = (np.arange(grid) * (n // grid) + (n // grid - 1) // 2 for n in shape)
        return (rows[:, None] * shape[1] + columns).reshape(-1)

    def _begun(self, level: int) -> bool:
        """Whether the cache was larger than the base capacity at some level up to this one."""
        return self.pyramid.offsets[level] + self.pyramid.sizes[level] > self.base_capacity

    def _budget(self, name: str, level: int) -> int:
        budgets = getattr(self, name)
        return budgets[level] if isinstance(budgets, tuple) else budgets

    def _is_drafted(self, run: int) -> bool:
        """Whether a run is one of drafters: they take turns with the others."""
        return (0 in self.drafters) == (run % 2 == 0)

    def _rows(
        self, keys: jax.Array, values: jax.Array, rows: Int[jax.Array, "blocks B k heads"]
    ) -> KeysValues:
        """Those of each head."""
        kept = (jnp.take_along_axis(x, rows[..., None], axis=2) for x in (keys, values))
        return KeysValues(*(x.reshape(*x.shape[:3], x.shape[3] * x.shape[4]) for x in kept))
