import time

import jax
import numpy as np
import pytest

from var_jax.data.prefetch import prefetch_to_device


def batches(count, seconds=0.0):
    for i in range(count):
        time.sleep(seconds)
        yield {
            "image": np.full((8, 2, 2, 1), i, np.uint8),
            "index": np.arange(8, dtype=np.int64) + 2**32 + 8 * i,
            "mask": np.ones(8, bool),
        }


def test_every_batch_arrives_in_order_and_sharded():
    mesh = jax.make_mesh((jax.device_count(),), ("data",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    got = list(prefetch_to_device(batches(5), sharding, size=2))
    assert [np.asarray(b["image"])[0, 0, 0, 0] for b, _ in got] == list(range(5))
    for i, (batch, wait) in enumerate(got):
        assert batch["image"].sharding == sharding and batch["image"].dtype == np.uint8
        assert batch["index"].dtype == np.uint32 and wait >= 0
        np.testing.assert_array_equal(batch["index"], np.arange(8) + 8 * i)


def test_waiting_is_measured():
    waits = [wait for _, wait in prefetch_to_device(batches(4, seconds=0.05), size=1)]
    assert min(waits) >= 0.05
    ready = [wait for _, wait in prefetch_to_device(batches(4), size=4)]
    assert min(ready[1:]) < 0.01


def test_closing_ends_the_source():
    closed = []

    def source():
        try:
            yield from batches(100)
        finally:
            closed.append(True)

    iterator = prefetch_to_device(source())
    next(iterator)
    iterator.close()
    assert closed == [True]
    with pytest.raises(ValueError, match="size must be at least 1"):
        next(prefetch_to_device(batches(1), size=0))
