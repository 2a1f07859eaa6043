import pytest

from var_jax.plan import accelerators, topology

pytest.importorskip("libtpu")


def test_unknown_topology():
    with pytest.raises(ValueError, match="No TPU topology 'v9:2x2'"):
        topology.devices("v9:2x2")


@pytest.mark.parametrize("name", ["v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2", "tpu7x:2x2x1"])
def test_chips(name):
    devices = topology.devices(name)
    chip = accelerators.of_kind(devices[0].device_kind)
    assert chip.name == name.split(":")[0]
    assert len(devices) == 4 * chip.per_chip
