"""Meshes and arrays on TPU slices that are not there."""

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from var_jax.parallel import sharding
from var_jax.plan.topology import devices


def mesh_on(topology="v5e:2x2", num_slices=1, **axes):
    return sharding.make_mesh(**axes, devices=devices(topology, num_slices))


def array(mesh, spec, *shape, dtype=jnp.bfloat16):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))
