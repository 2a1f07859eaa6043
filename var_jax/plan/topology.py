"""TPU topologies that are not attached, to compile for."""

from __future__ import annotations

import os
from typing import Any

#: What libtpu wants to be told where no TPU is attached. It must stand in the environment
#: before libtpu is loaded. The last one lets two processes compile at the same time.
ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def devices(name: str, num_slices: int = 1) -> list[Any]:
    """The devices of a TPU topology, to build a mesh from and compile for.

    Args:
      name: such as 'v5e:16x16' or 'v5p:4x4x4'; chips, not cores.
      num_slices: that many of these topologies, joined by the data centre's network.

    Raises:
      ValueError: libtpu does not know the topology, or is not installed.
    """
    import jax
    from jax.experimental import topologies

    if os.environ.get("JAX_PLATFORMS") == "cpu" or jax.default_backend() != "tpu":
        for key, value in ENVIRONMENT.items():
            os.environ.setdefault(key, value)
    options: dict[str, Any] = {} if num_slices == 1 else {"num_slices": num_slices}
    if name.startswith("v4:"):
        # Both cores of a chip as one device, as Cloud TPU v4 has them.
        options["chip_config_name"] = "megacore"
    try:
        topology = topologies.get_topology_desc(platform="tpu", topology_name=name, **options)
    except Exception as error:
        raise ValueError(
            f"No TPU topology {name!r} to compile for: {str(error).splitlines()[0]}; "
            "is libtpu installed, and is the name like v5e:4x4 or v5p:2x2x4?"
        ) from error
    return list(topology.devices)
