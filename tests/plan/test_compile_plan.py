"""Plans of programs compiled for TPU slices that are not there."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P
from slices import array, mesh_on

from var_jax.plan import accelerators, compile_plan
from var_jax.plan.programs import Program

pytest.importorskip("libtpu")

SIZE = 2048


def test_a_plan():
    mesh = mesh_on(data=1, fsdp=4)
    w = array(mesh, P("fsdp"), SIZE, SIZE)
    x = array(mesh, P(("data", "fsdp")), 4 * SIZE, SIZE)
    jitted = jax.jit(lambda w, x: x @ w, out_shardings=x.sharding)
    flops = 2 * 4 * SIZE * SIZE * SIZE
    plan = compile_plan.make_plan(
        Program(jitted, (w, x), mesh, "fsdp", images=4, model_flops=flops)
    )
    assert (
        plan.fits
        and plan.chip == accelerators.CHIPS["v5e"]
        and plan.num_chips == plan.num_devices == 4
    )
    assert plan.program_flops == plan.model_flops == flops / 4
    assert plan.argument_bytes == 2 * SIZE * SIZE * (1 / 4 + 1)
    assert plan.floor_seconds == max(plan.floors.values()) <= plan.serial_seconds
    assert plan.utilisation(plan.compute_seconds) == pytest.approx(1)
    assert plan.chip_hours(3600, 1.0) == 4


def test_a_program_that_does_not_fit():
    mesh = mesh_on(data=4)
    x = array(mesh, P(), 5 * 2**30, dtype=jnp.float32)
    plan = compile_plan.make_plan(
        Program(jax.jit(lambda x: x * 2), (x,), mesh, "replicated", images=1)
    )
    assert not plan.fits
    assert plan.peak_bytes > 16 * 2**30


def test_what_lies_beside_a_program_counts():
    mesh = mesh_on(data=4)
    read, unread = array(mesh, P("data"), 4 * SIZE, SIZE), array(mesh, P(), SIZE, SIZE)
    other = array(mesh, P(("data",)), 4 * SIZE, SIZE, dtype=jnp.float32)

    def plan(beside):
        function = jax.jit(lambda read, unread: read * 2)
        args = (read, unread)
        return compile_plan.make_plan(
            Program(function, args, mesh, "replicated", images=1, beside=beside)
        )

    alone, beside = plan(()), plan({"read": read, "unread": unread, "other": other})
    assert (alone.beside_bytes, alone.total_bytes) == (0, alone.peak_bytes)
    # The argument that is not read is not passed, but there it lies.
    assert beside.beside_bytes == 2 * SIZE * SIZE + 4 * SIZE * SIZE
    assert beside.peak_bytes == alone.peak_bytes and beside.fits
    full = array(mesh, P(), 16 * 2**30 - 2**24, dtype=jnp.int8)
    assert not plan((full,)).fits
