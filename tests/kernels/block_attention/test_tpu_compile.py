"""The TPU kernels compile for every supported TPU, with no TPU attached."""

import os
import subprocess
import sys

import pytest

from var_jax.plan.topology import ENVIRONMENT

PROGRAM = """
import sys
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P
from var_jax.kernels.block_attention import block_attention, shapes

def compile(topology, shape, mesh_shape):
    devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    devices = np.array(devices[: np.prod(mesh_shape)]).reshape(mesh_shape)
    mesh = Mesh(devices, ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    split = NamedSharding(mesh, P(("data", "fsdp"), None, "tensor", None))
    size = (shape.batch, shape.num_queries, shape.num_heads, shape.head_dim)
    x = jax.ShapeDtypeStruct(size, jnp.bfloat16, sharding=split)
    scale = jax.ShapeDtypeStruct(
        (shape.num_heads,), jnp.float32, sharding=NamedSharding(mesh, P("tensor")))

    def both(q, k, v, log_scale, do):
        attend = lambda q, k, v, s: block_attention(q, k, v, shape.segments, log_scale=s)
        return jax.vjp(attend, q, k, v, log_scale)[1](do)

    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        text = jax.jit(both).lower(x, x, x, scale, x).compile().as_text()
    for kernel in ("forward", "backward"):
        assert kernel in text and "tpu_custom_call" in text, topology
    assert "all-gather" not in text, topology
    print("compiled", topology, shape.num_queries, flush=True)

compile("v5e:2x2", shapes.training(256, 4, 6), (1, 2, 2))
compile("v4:2x2x1", shapes.training(256, 1, 2), (1, 1, 1))
compile("v5p:2x2x1", shapes.training(256, 1, 2), (1, 1, 1))
compile("v6e:2x2", shapes.training(256, 1, 2), (1, 1, 1))
compile("v5e:2x2", shapes.training(512, 1, 2), (1, 1, 1))
compile("v4:2x2x1", shapes.training(1024, 1, 2), (1, 1, 1))
"""


def test_forward_and_backward_compile():
    pytest.importorskip("libtpu")
    environment = {**os.environ, **ENVIRONMENT, "JAX_PLATFORMS": "cpu"}
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout.count("compiled") == 6
