import pytest

from var_jax.plan import chips, topology

pytest.importorskip("libtpu")


def test_unknown_topology():
    with pytest.raises(ValueError, match="No TPU topology 'v9:2x2'"):
        topology.devices("v9:2x2")


@pytest.mark.parametrize(
    "name, chip", [("v4:2x2x1", "v4"), ("v5p:2x2x1", "v5p"), ("v6e:2x2", "v6e")]
)
def test_chips(name, chip):
    devices = topology.devices(name)
    assert len(devices) == 4
    assert chips.of_kind(devices[0].device_kind).name == chip
