"""From host batches to sharded device arrays, ahead of time, with the waiting measured."""

from __future__ import annotations

import collections
import time
from collections.abc import Iterable, Iterator

import jax
import numpy as np

from var_jax.parallel import arrays


def prefetch_to_device(
    iterator: Iterable[dict[str, np.ndarray]],
    sharding: jax.sharding.Sharding | None = None,
    batch_size: int | None = None,
    size: int = 2,
) -> Iterator[tuple[dict[str, jax.Array], float]]:
    """Keeps `size` batches on their way to the devices while the step before them runs.

    Transfers are asynchronous, so the time measured is what the loop really waited for data.

    Args:
      iterator: of each global batch the rows that this process's devices hold
        (`arrays.process_rows`), arrays with the batch on axis 0.
      sharding: of the global batch's axis 0 (the same for every field); None: default device.
      batch_size: rows of a global batch; None: those that the iterator gives are all.
      size: batches in flight, >= 1.

    Yields:
      (batch, wait_seconds): global arrays; "index" becomes uint32 (modulo 2**32), what
      jax.random.fold_in takes, since devices have no 64-bit integers by default.
    """
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size}.")

    def put(value: np.ndarray) -> jax.Array:
        if value.dtype == np.int64:
            value = value.astype(np.uint32)
        if sharding is None:
            return jax.device_put(value)
        return arrays.global_rows(value, sharding, batch_size or len(value))

    source = iter(iterator)
    ready: collections.deque = collections.deque()
    try:
        done = False
        while True:
            start = time.perf_counter()
            while not done and len(ready) < size:
                try:
                    batch = next(source)
                except StopIteration:
                    done = True
                    break
                ready.append({key: put(value) for key, value in batch.items()})
            if not ready:
                return
            batch = ready.popleft()
            yield batch, time.perf_counter() - start
    finally:
        if hasattr(source, "close"):
            source.close()
