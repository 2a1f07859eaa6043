"""The real shapes of block attention, shared by tests, benchmarks and tuning."""

from __future__ import annotations

import dataclasses

from var_jax.context import (
    BlockCausal,
    Context,
    KeySegment,
    OwnNeighbourhood,
    OwnScale,
    key_segments,
)
from var_jax.pyramid import ScalePyramid


@dataclasses.dataclass(frozen=True)
class Shape:
    """One call of block attention.

    Attributes:
      batch: B, on one device.
      num_heads: N.
      segments: key intervals; their rows are Lq.
      num_keys: Lk.
      head_dim: H.
    """

    batch: int
    num_heads: int
    segments: tuple[KeySegment, ...]
    num_keys: int
    head_dim: int = 64

    @property
    def num_queries(self) -> int:
        """Lq."""
        return sum(s.rows for s in self.segments)


def training(image_size: int, batch: int, num_heads: int, context: Context | None = None) -> Shape:
    """A whole pyramid of the published schedule for 256, 512 or 1024 px, all levels at once."""
    pyramid = ScalePyramid.for_image_size(image_size)
    segments = key_segments(pyramid, context or BlockCausal())
    return Shape(batch, num_heads, segments, pyramid.length)


def decoding(image_size: int, level: int, batch: int, num_heads: int) -> Shape:
    """One level of cached block-causal sampling: its queries see every key so far."""
    pyramid = ScalePyramid.for_image_size(image_size)
    num_keys = pyramid.offsets[level + 1]
    return Shape(batch, num_heads, (KeySegment(pyramid.sizes[level], 0, num_keys),), num_keys)


def alone(image_size: int, level: int, batch: int, num_heads: int, context: Context) -> Shape:
    """One level that sees itself only, in training or sampling."""
    pyramid = ScalePyramid.for_image_size(image_size)
    segments = key_segments(pyramid, context, range(level, level + 1))
    return Shape(batch, num_heads, segments, pyramid.sizes[level])


#: d16 at 256 px, 8 images per chip (L = 680); 512 px (L = 2240); 1024 px (L = 9451).
SHAPES = {
    "train_256": training(256, 8, 16),
    "train_512": training(512, 2, 16),
    "train_1024": training(1024, 1, 16),
    "decode_256_last": decoding(256, 9, 16, 16),
    "own_256_last": alone(256, 9, 8, 16, OwnScale()),
    "near_256_last": alone(256, 9, 8, 16, OwnNeighbourhood(8)),
}
