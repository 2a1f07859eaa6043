import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from var_jax.parallel import arrays, sharding


@pytest.fixture(scope="module")
def mesh():
    return sharding.make_mesh(data=2, fsdp=2, tensor=2)


def test_a_process_holds_the_rows_of_its_devices(mesh):
    split = sharding.batch_sharding(mesh)
    np.testing.assert_array_equal(arrays.process_rows(split, 8), np.arange(8))

    class OfTwoHosts:
        """The sharding as one of two hosts sees it: the tensor axis, or the data axis, is cut."""

        def __init__(self, devices):
            self._devices = set(devices.flat)

        def addressable_devices_indices_map(self, shape):
            found = split.devices_indices_map(shape)
            return {d: index for d, index in found.items() if d in self._devices}

    for half in (0, 1):
        rows = arrays.process_rows(OfTwoHosts(mesh.devices[:, :, half]), 8)
        np.testing.assert_array_equal(rows, np.arange(8))  # Both hold parts of all examples.
        rows = arrays.process_rows(OfTwoHosts(mesh.devices[half]), 8)
        np.testing.assert_array_equal(rows, np.arange(4) + 4 * half)
        rows = arrays.process_rows(OfTwoHosts(mesh.devices[:, half]), 8)
        np.testing.assert_array_equal(rows, np.array([0, 1, 4, 5]) + 2 * half)  # Not in one run.


def test_rows_become_a_global_array_and_back(mesh):
    split = sharding.batch_sharding(mesh)
    x = np.arange(24, dtype=np.int32).reshape(8, 3)
    placed = arrays.global_rows(x, split, 8)
    assert placed.shape == (8, 3) and placed.sharding == split
    np.testing.assert_array_equal(placed, x)
    rows, values = arrays.own_rows(placed)
    np.testing.assert_array_equal(rows, np.arange(8))
    np.testing.assert_array_equal(values, x)
    everywhere = arrays.place(x, sharding.replicated_sharding(mesh))
    np.testing.assert_array_equal(arrays.own_rows(everywhere)[1], x)
    np.testing.assert_array_equal(arrays.to_host(everywhere), x)
    with pytest.raises(ValueError, match="hold 8 rows of a batch of 8, but 4 were given"):
        arrays.global_rows(x[:4], split, 8)


def test_placing_cuts_host_arrays_and_leaves_what_lies_right(mesh):
    cut = NamedSharding(mesh, P("fsdp"))
    tree = {"a": np.arange(4.0), "b": np.float32(2)}
    whole = sharding.replicated_sharding(mesh)
    placed = arrays.place(tree, {"a": cut, "b": whole})
    assert placed["a"].sharding == cut and placed["a"].addressable_shards[0].data.shape == (2,)
    again = arrays.place(placed, {"a": cut, "b": whole})
    assert again["a"] is placed["a"] and again["b"] is placed["b"]
    moved = arrays.place(placed, whole)
    assert moved["a"].is_fully_replicated
    mixed = arrays.put_host_arrays({"x": placed["a"], "y": np.ones(3)}, whole)
    assert mixed["x"] is placed["a"] and mixed["y"].sharding == whole
    # From one device to another mesh: through the host, never a transfer between devices.
    alone = jax.device_put(np.arange(4.0), jax.devices()[0])
    np.testing.assert_array_equal(arrays.place(alone, cut), np.arange(4.0))


def test_rows_are_gathered_in_the_order_of_their_numbers():
    found = arrays.gather_rows(np.array([7, 2**40, 3]), np.array([[7], [9], [3]]))
    np.testing.assert_array_equal(found, [[3], [7], [9]])
    assert arrays.from_process_0(2**40 + 5) == 2**40 + 5
