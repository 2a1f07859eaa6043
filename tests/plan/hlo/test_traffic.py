"""Traffic that is known by hand, of programs compiled for TPU slices that are not there."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P
from slices import array, mesh_on

from var_jax.plan.hlo.traffic import Traffic

pytest.importorskip("libtpu")

SIZE = 2048


def program(f, *args, **options):
    return Traffic(jax.jit(f, **options).lower(*args).compile().as_text())


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
