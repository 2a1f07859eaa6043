"""Improved precision and recall, density and coverage, in blocks.

Distances of 50,000 samples to each other would take 10 GB: blocks of rows and columns are
compared on the devices, and only radii and counts are kept. Rows are spread over all local
devices.

Sources: Kynkaanniemi et al. 2019 (arXiv 1904.06991); Naeem et al. 2020 (arXiv 2002.09797).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Bool, Float, Float32, Int64


@struct.dataclass
class ManifoldScores:
    """How far two sets of features cover each other.

    Attributes:
      precision: share of generated samples inside some real sample's ball (k nearest).
      recall: share of real samples inside some generated sample's ball.
      density: mean number of real balls around a generated sample, over density_k.
      coverage: share of real samples with a generated one in their ball (density_k nearest).
    """

    precision: float
    recall: float
    density: float
    coverage: float


def manifold_scores(
    real: Float[np.ndarray, "n D"],
    fake: Float[np.ndarray, "m D"],
    *,
    k: int = 3,
    density_k: int = 5,
    block: int = 4096,
    devices: list[jax.Device] | None = None,
) -> ManifoldScores:
    """Precision and recall with k neighbours, density and coverage with density_k.

    Args:
      real, fake: features.
      k, density_k: neighbours, the sample itself not counted.
      block: rows and columns of a block of distances (memory: 4 block^2 bytes).
      devices: all local ones by default.

    Raises:
      ValueError: too few samples for that many neighbours.
    """
    largest = max(k, density_k)
    if min(len(real), len(fake)) <= largest:
        raise ValueError(
            f"{largest} neighbours need more than {largest} samples, and there are {len(real)} "
            f"real and {len(fake)} generated ones."
        )
    # Distances do not change, and float32 loses less, around the origin.
    centre = real.mean(0, dtype=np.float64).astype(np.float32)
    compare = _Blocks(devices or jax.local_devices(), block)
    real, fake = real - centre, fake - centre
    real_radii = compare.radii(real, (k, density_k))
    fake_radii = compare.radii(fake, (k,))
    counts, nearest, inside_fake = compare.cross(real, real_radii, fake, fake_radii[:, 0])
    return ManifoldScores(
        precision=float(np.mean(counts[:, 0] > 0)),
        recall=float(np.mean(inside_fake)),
        density=float(counts[:, 1].mean() / density_k),
        coverage=float(np.mean(nearest <= real_radii[:, 1])),
    )


class _Blocks:
    """Loops over blocks of squared distances."""

    def __init__(self, devices: list[jax.Device], block: int):
        mesh = jax.sharding.Mesh(np.array(devices), ("rows",))
        self.block = -(-block // len(devices)) * len(devices)
        self.rows = NamedSharding(mesh, PartitionSpec("rows"))
        self.whole = NamedSharding(mesh, PartitionSpec())

    def _padded(self, features: np.ndarray, start: int, size: int) -> np.ndarray:
        part = features[start : start + size]
        return np.pad(part, [(0, size - len(part))] + [(0, 0)] * (part.ndim - 1))

    def _size(self, *features: np.ndarray) -> int:
        """Block size, no larger than needed; divisible by the devices."""
        devices = self.rows.mesh.size
        longest = max(map(len, features))
        return min(self.block, -(-longest // devices) * devices)

    def radii(
        self, features: Float[np.ndarray, "n D"], neighbours: tuple[int, ...]
    ) -> Float32[np.ndarray, "n k"]:
        """Squared distance of each sample to its k-th neighbours."""
        count, size = len(features), self._size(features)
        keep = max(neighbours) + 1  # the sample itself is the nearest
        result = np.empty((count, len(neighbours)), np.float32)
        for start in range(0, count, size):
            rows = jax.device_put(self._padded(features, start, size), self.rows)
            best = jnp.full((size, keep), jnp.inf, jnp.float32, device=self.rows)
            for other in range(0, count, size):
                columns = jax.device_put(self._padded(features, other, size), self.whole)
                best = _nearest(best, rows, columns, min(size, count - other))
            found = np.asarray(best)[: min(size, count - start)]
            result[start : start + size] = found[:, list(neighbours)]
        return result

    def cross(
        self,
        real: Float[np.ndarray, "n D"],
        real_radii: Float32[np.ndarray, "n 2"],
        fake: Float[np.ndarray, "m D"],
        fake_radii: Float32[np.ndarray, " m"],
    ) -> tuple[Int64[np.ndarray, "m 2"], Float32[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
        """Comparisons of every generated with every real sample.

        Returns:
          real balls around each generated sample, for both columns of real_radii.
          squared distance of each real sample to the nearest generated one.
          whether each real sample is inside a generated one's ball.
        """
        size = self._size(real, fake)
        counts = np.zeros((len(fake), 2), np.int64)
        nearest = np.full(len(real), np.inf, np.float32)
        inside = np.zeros(len(real), bool)
        for start in range(0, len(fake), size):
            rows = jax.device_put(self._padded(fake, start, size), self.rows)
            row_radii = jax.device_put(self._padded(fake_radii, start, size), self.rows)
            row_count = min(size, len(fake) - start)
            for other in range(0, len(real), size):
                columns = jax.device_put(self._padded(real, other, size), self.whole)
                radii = jax.device_put(self._padded(real_radii, other, size), self.whole)
                column_count = min(size, len(real) - other)
                block_counts, block_nearest, block_inside = jax.device_get(
                    _compare(rows, row_radii, columns, radii, row_count, column_count)
                )
                counts[start : start + row_count] += block_counts[:row_count]
                part = slice(other, other + column_count)
                nearest[part] = np.minimum(nearest[part], block_nearest[:column_count])
                inside[part] |= block_inside[:column_count]
        return counts, nearest, inside


def _distances(rows: jax.Array, columns: jax.Array) -> jax.Array:
    products = jnp.dot(rows, columns.T, precision=jax.lax.Precision.HIGHEST)
    squares = jnp.sum(rows**2, 1)[:, None] + jnp.sum(columns**2, 1)[None]
    return jnp.maximum(squares - 2 * products, 0)


@jax.jit
def _nearest(best: jax.Array, rows: jax.Array, columns: jax.Array, count: int) -> jax.Array:
    """The smallest of `best` [R, k] and of the distances to the first `count` columns."""
    valid = jnp.arange(columns.shape[0]) < count
    distances = jnp.where(valid, _distances(rows, columns), jnp.inf)
    keep = best.shape[1]
    found = -jax.lax.top_k(-distances, min(keep, distances.shape[1]))[0]
    return -jax.lax.top_k(-jnp.concatenate([best, found], 1), keep)[0]


@jax.jit
def _compare(
    rows: jax.Array,
    row_radii: jax.Array,
    columns: jax.Array,
    column_radii: jax.Array,
    row_count: int,
    column_count: int,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    valid_rows = jnp.arange(rows.shape[0]) < row_count
    valid_columns = jnp.arange(columns.shape[0]) < column_count
    distances = _distances(rows, columns)
    distances = jnp.where(valid_rows[:, None] & valid_columns, distances, jnp.inf)
    counts = jnp.sum(distances[:, :, None] <= column_radii, 1)
    inside = jnp.any(distances <= row_radii[:, None], 0)
    return counts, jnp.min(distances, 0), inside
