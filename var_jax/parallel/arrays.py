"""Between what a process holds and arrays over a mesh of many processes.

No array is put on one device first and moved from there: on two hosts that is an error. Host
arrays become parts on each device; a process gets back the rows that its own devices hold.
"""

from __future__ import annotations

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Sharding
from jaxtyping import Array, Int64, Integer, PyTree, Shaped


def process_rows(sharding: Sharding, size: int) -> Int64[np.ndarray, " n"]:
    """Which rows of an axis 0 of `size` this process's devices hold, ascending.

    Processes that hold parts of the same examples (a tensor axis over hosts) hold the same rows.
    """
    found = sharding.addressable_devices_indices_map((size,)).values()
    bounds = {index[0].indices(size)[:2] for index in found}
    return np.concatenate([np.arange(start, stop) for start, stop in sorted(bounds)])


def global_rows(
    local: Shaped[np.ndarray, " n *shape"], sharding: Sharding, size: int
) -> Shaped[Array, " size *shape"]:
    """The array [size, ...] of which this process gives the rows `process_rows`.

    Raises:
      ValueError: it gives another number of rows.
    """
    rows = process_rows(sharding, size)
    if len(local) != len(rows):
        raise ValueError(
            f"This process's devices hold {len(rows)} rows of a batch of {size}, but "
            f"{len(local)} were given."
        )

    def part(index: tuple[slice, ...]) -> np.ndarray:
        start, stop, _ = index[0].indices(size)
        first = int(np.searchsorted(rows, start))
        return local[first : first + stop - start]

    return jax.make_array_from_callback((size, *local.shape[1:]), sharding, part)


def place(tree: PyTree, shardings: PyTree) -> PyTree:
    """Arrays laid out by `shardings`, each device getting its own part only.

    Args:
      tree: host arrays, the same on every process, or arrays over the same devices; those that
        lie as asked for are returned as they are.
      shardings: one for all leaves, or a tree of them.
    """
    if isinstance(shardings, Sharding):
        shardings = jax.tree.map(lambda _: shardings, tree)
    return jax.tree.map(_place, tree, shardings)


def _place(x: jax.typing.ArrayLike, sharding: Sharding) -> jax.Array:
    if isinstance(x, jax.Array):
        if x.sharding.is_equivalent_to(sharding, x.ndim):
            return x
        if x.sharding.device_set == sharding.device_set or sharding.is_fully_addressable:
            return jax.device_put(x, sharding)
    x = np.asarray(x)
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])


def put_host_arrays(tree: PyTree, sharding: Sharding) -> PyTree:
    """The tree with its NumPy arrays placed by `sharding`; what is on devices stays there."""
    return jax.tree.map(lambda x: _place(x, sharding) if isinstance(x, np.ndarray) else x, tree)


def own_rows(
    x: Shaped[Array, " size *shape"],
) -> tuple[Int64[np.ndarray, " n"], Shaped[np.ndarray, " n *shape"]]:
    """The rows of axis 0 that this process answers for: each row has one such process.

    Args:
      x: cut along axis 0 at most.

    Returns:
      which rows, ascending, and the rows.
    """
    parts = {}
    for shard in x.addressable_shards:
        if shard.replica_id == 0:
            start, stop, _ = shard.index[0].indices(x.shape[0])
            parts[start] = (np.arange(start, stop), np.asarray(shard.data))
    if not parts:
        return np.zeros(0, np.int64), np.zeros((0, *x.shape[1:]), x.dtype)
    rows, values = zip(*(parts[start] for start in sorted(parts)), strict=True)
    return np.concatenate(rows), np.concatenate(values)


def gather_rows(
    numbers: Integer[np.ndarray, " n"], rows: Shaped[np.ndarray, " n *shape"]
) -> Shaped[np.ndarray, " size *shape"]:
    """The rows of all processes, in the order of their numbers; every process must call it.

    Args:
      numbers: of this process's rows; n may differ between processes.
      rows: this process's.
    """
    if jax.process_count() == 1:
        return rows[np.argsort(numbers, kind="stable")]
    counts = multihost_utils.process_allgather(np.array(len(rows)))
    fill = counts.max() - len(rows)

    def gather(x: np.ndarray) -> np.ndarray:
        padded = np.pad(x, [(0, fill), *[(0, 0)] * (x.ndim - 1)])
        parts = multihost_utils.process_allgather(padded)
        return np.concatenate([part[:n] for part, n in zip(parts, counts, strict=True)])

    # 32 bits at a time: JAX has no 64-bit integers by default.
    high, low = np.divmod(np.asarray(numbers, np.int64), 2**31)
    order = np.lexsort((gather(low.astype(np.int32)), gather(high.astype(np.int32))))
    return gather(np.asarray(rows))[order]


def from_process_0(value: int) -> int:
    """The number that process 0 gives; every process must call it."""
    if jax.process_count() == 1:
        return int(value)
    high, low = divmod(int(value), 2**31)
    high, low = multihost_utils.broadcast_one_to_all(np.array([high, low], np.int32))
    return int(high) * 2**31 + int(low)


def to_host(x: Shaped[Array, " *shape"]) -> Shaped[np.ndarray, " *shape"]:
    """A global array as numpy, whole on every process; every process must call it."""
    if x.is_fully_addressable or x.is_fully_replicated:
        return np.asarray(x)
    return np.asarray(multihost_utils.process_allgather(x, tiled=True))
