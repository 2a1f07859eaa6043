"""The contract of a codec: what is predicted at each level of the pyramid."""

from __future__ import annotations

from typing import Any, Protocol

import jax

from var_jax.pyramid import ScalePyramid


class Codec(Protocol):
    """Turns a feature map into one target a level, and targets into a feature map again.

    A codec is a flax module without anything but parameters. `advance` is the recurrence that
    sampling runs level by level; `teacher_inputs` is the same recurrence folded over targets
    that are known already. The carry belongs to the codec: None stands before level 0, and
    callers only hand it on.

    Attributes:
      pyramid: the level shapes; the finest is the grid of the feature map.
    """

    pyramid: ScalePyramid

    def encode(self, features: jax.Array) -> jax.Array:
        """float [B, h, w, C] -> the targets of all levels, [B, L] or [B, L, ...]."""

    def teacher_inputs(self, targets: jax.Array) -> jax.Array:
        """Targets [B, L] -> float32 [B, L, C]; level k's rows depend on levels < k only."""

    def advance(self, carry: Any, level: int, target: jax.Array) -> tuple[Any, jax.Array | None]:
        """Adds one level.

        Args:
          carry: None before level 0, afterwards what the previous call returned.
          level: the level that `target` belongs to.
          target: the targets of this level, [B, n_level] or [B, n_level, ...].

        Returns:
          The new carry, and the next level's input [B, n_{level + 1}, C] (None after the last).
        """

    def finish(self, carry: Any) -> jax.Array:
        """The carry after the last level -> features float32 [B, h, w, C]."""
