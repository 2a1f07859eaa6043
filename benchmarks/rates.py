"""Median times, and what this machine's devices reach at most, measured."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds of a run: median and quartiles over `runs`."""

    median: float
    low: float
    high: float
    runs: int


def time_runs(run: Callable[[], Any], seconds: float, repeats: int) -> Timing:
    """Times `run`, which must return arrays, after one run that is not counted."""
    import jax
    import numpy as np

    jax.block_until_ready(run())
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < repeats or time.perf_counter() < end:
        start = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - start)
    low, median, high = np.percentile(times, [25, 50, 75])
    return Timing(float(median), float(low), float(high), len(times))


def matrix_rate(dtype: Any, seconds: float = 1.0) -> float:
    """Operations a second of one device on a large square product."""
    import jax

    size, count = 2048 if jax.default_backend() == "cpu" else 8192, 8
    # Random numbers: chips compute with equal ones faster than with any that occur.
    keys = jax.random.split(jax.random.key(0))
    a, b = (jax.random.normal(key, (size, size), dtype) for key in keys)
    # One after another in one program, so that starting it does not count.
    products = jax.jit(lambda a, b: jax.lax.fori_loop(0, count, lambda _, b: a @ b, b))
    a = a / size**0.5
    return 2.0 * count * size**3 / time_runs(lambda: products(a, b), seconds, 5).median


def memory_rate(seconds: float = 1.0) -> float:
    """Bytes a second that one device reads and writes in a copy of 256 MiB."""
    import jax
    import jax.numpy as jnp

    x = jnp.ones(64 * 2**20, jnp.float32)
    copy = jax.jit(lambda a: a + 1)
    return 2.0 * x.nbytes / time_runs(lambda: copy(x), seconds, 5).median
