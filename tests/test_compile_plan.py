"""Reading programs compiled for TPU slices that are not there: traffic that is known by hand."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from var_jax import chips, compile_plan, hlo, sharding
from var_jax.programs import Program

pytest.importorskip("libtpu")

SIZE = 2048


def mesh_on(topology="v5e:2x2", num_slices=1, **axes):
    devices = compile_plan.topology_devices(topology, num_slices)
    return sharding.make_mesh(**axes, devices=devices)


def array(mesh, spec, *shape, dtype=jnp.bfloat16):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))


def program(f, *args, **options):
    return hlo.Program(jax.jit(f, **options).lower(*args).compile().as_text())


def sent(p):
    return sum(c.sent_bytes for c in p.collectives())


def test_a_gathered_weight():
    mesh = mesh_on(data=1, fsdp=4)
    w = array(mesh, P("fsdp"), SIZE, SIZE)
    x = array(mesh, P(("data", "fsdp")), 4 * SIZE, SIZE)
    p = program(lambda w, x: x @ w, w, x, out_shardings=x.sharding)
    assert p.num_partitions == 4
    # Three quarters of the weight come from elsewhere, and a ring passes each on once.
    assert sent(p) == pytest.approx(0.75 * 2 * SIZE * SIZE, rel=0.05)


def test_loops_multiply():
    mesh = mesh_on(data=1, fsdp=4)
    w = array(mesh, P(None, "fsdp"), 6, SIZE, SIZE)
    x = array(mesh, P(("data", "fsdp")), 4 * SIZE, SIZE)

    def f(w, x):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]

    p = program(f, w, x, out_shardings=x.sharding)
    assert 6 in p.loops().values()
    assert sent(p) == pytest.approx(6 * 0.75 * 2 * SIZE * SIZE, rel=0.05)


def test_gradients_of_copies_are_reduced():
    mesh = mesh_on(data=4)
    w = array(mesh, P(), SIZE, SIZE)
    x = array(mesh, P(("data", "fsdp")), 64, SIZE)

    def loss(w, x):
        return jnp.sum(jnp.tanh(x @ w).astype(jnp.float32))

    p = program(jax.grad(loss), w, x, out_shardings=w.sharding)
    assert sent(p) == pytest.approx(2 * 0.75 * 2 * SIZE * SIZE, rel=0.05)
    assert p.network_bytes() == 0


def test_only_whole_copies_cross_between_slices():
    mesh = mesh_on(num_slices=2, data=2, fsdp=4)
    w = array(mesh, P("fsdp"), SIZE, SIZE)
    x = array(mesh, P(("data", "fsdp")), 64, SIZE)

    def loss(w, x):
        return jnp.sum(jnp.tanh(x @ w).astype(jnp.float32))

    p = program(jax.grad(loss), w, x, out_shardings=w.sharding)
    # Each chip exchanges its quarter of the gradient with the other slice.
    assert p.network_bytes() == pytest.approx(2 * SIZE * SIZE / 4, rel=0.05)
    # In the slice: gather the weight, scatter the gradient.
    assert sent(p) == pytest.approx(2 * 0.75 * 2 * SIZE * SIZE, rel=0.1)


def test_memory_traffic():
    mesh = mesh_on(data=4)
    # Too large for on-chip memory: read once, written once.
    x = array(mesh, P(("data", "fsdp")), 4 * 2**14, SIZE)
    p = program(lambda x: x * 2 + 1, x)
    assert p.memory_bytes() == pytest.approx(2 * 2**14 * SIZE * 2, rel=0.02)
    # Of stacked weights each layer reads its own, not all of them.
    w = array(mesh, P(), 8, 8192, 8192)
    y = array(mesh, P(("data", "fsdp")), 32, 8192)

    def f(w, y):
        return jax.lax.scan(lambda y, w: (jnp.tanh(y @ w), None), y, w)[0]

    assert program(f, w, y).memory_bytes() == pytest.approx(8 * 8192 * 8192 * 2, rel=0.1)


def test_a_plan():
    mesh = mesh_on(data=1, fsdp=4)
    w = array(mesh, P("fsdp"), SIZE, SIZE)
    x = array(mesh, P(("data", "fsdp")), 4 * SIZE, SIZE)
    jitted = jax.jit(lambda w, x: x @ w, out_shardings=x.sharding)
    flops = 2 * 4 * SIZE * SIZE * SIZE
    plan = compile_plan.make_plan(
        Program(jitted, (w, x), mesh, "fsdp", images=4, model_flops=flops)
    )
    assert plan.fits and plan.chip == chips.CHIPS["v5e"] and plan.num_chips == 4
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


def test_unknown_topology():
    with pytest.raises(ValueError, match="No TPU topology 'v9:2x2'"):
        compile_plan.topology_devices("v9:2x2")


CHIPS = [("v4:2x2x1", "v4"), ("v5p:2x2x1", "v5p"), ("v6e:2x2", "v6e")]


@pytest.mark.parametrize("name, chip", CHIPS)
def test_chips(name, chip):
    devices = compile_plan.topology_devices(name)
    assert len(devices) == 4
    assert chips.of_kind(devices[0].device_kind).name == chip


@pytest.mark.parametrize(
    "attributes, size",
    [
        ("replica_groups={{0,1,2},{3,4,5}}, x", 3),
        ("replica_groups=[2,8]<=[16]", 8),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", 2),
        ("replica_groups=mesh['a'=4,'b'=16] {'b'}", 16),
        ("replica_groups=mesh['a'=4,'b'=16] {'a','b'}", 64),
        ("replica_groups=mesh['a'=4,'b'=16] {'b':(1)4}", 4),
        ("replica_groups={}", 32),
        ("source_target_pairs={{0,1},{1,0}}", 2),
        ("source_target_pairs={{0,0},{1,1}}", 1),
    ],
)
def test_group_sizes(attributes, size):
    assert hlo.group_size(attributes, 32) == size


def test_types():
    text = "(bf16[2,3]{1,0:T(8,128)(2,1)S(1)}, f32[4]{0}, pred[8], s4[4], f8e4m3fn[3])"
    assert hlo.array_bytes(text) == 12 + 16 + 8 + 2 + 3
    assert hlo.main_memory_bytes(text) == 16 + 8 + 2 + 3
