"""Traffic that is known by hand, of programs compiled for TPU slices that are not there."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P
from slices import array, mesh_on

from var_jax.parallel import sharding
from var_jax.plan.hlo.traffic import Traffic

pytest.importorskip("libtpu")

SIZE = 2048


def program(f, *args, **options):
    mesh = args[0].sharding.mesh
    jitted = jax.jit(f, **options, compiler_options=sharding.compiler_options(mesh))
    return Traffic(jitted.lower(*args).compile().as_text())


def sent(p):
    return sum(c.sent_bytes for c in p.collectives())


everywhere = pytest.mark.parametrize("topology", ["v5e:2x2", "tpu7x:2x2x1"])


@everywhere
def test_a_gathered_weight(topology):
    mesh = mesh_on(topology, data=1, fsdp=-1)
    w = array(mesh, P("fsdp"), SIZE, SIZE)
    x = array(mesh, P(("data", "fsdp")), mesh.size * SIZE, SIZE)
    p = program(lambda w, x: x @ w, w, x, out_shardings=x.sharding)
    assert p.num_partitions == mesh.size
    # All of the weight but the own part comes from elsewhere, and a ring passes each on once.
    assert sent(p) == pytest.approx((1 - 1 / mesh.size) * 2 * SIZE * SIZE, rel=0.05)


@everywhere
def test_loops_multiply(topology):
    mesh = mesh_on(topology, data=1, fsdp=-1)
    w = array(mesh, P(None, "fsdp"), 6, SIZE, SIZE)
    x = array(mesh, P(("data", "fsdp")), mesh.size * SIZE, SIZE)

    def f(w, x):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]

    p = program(f, w, x, out_shardings=x.sharding)
    assert sent(p) == pytest.approx(6 * (1 - 1 / mesh.size) * 2 * SIZE * SIZE, rel=0.05)


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


#: As TPU7x is told to gather on its sparse cores, and to write one layer of eight into a stack
#: whose tiles are not those that the fusion works in.
TPU7X = """
HloModule example, num_partitions=8

%gather (part: bf16[256,2048]) -> bf16[2048,2048] {
  %part = bf16[256,2048]{1,0:T(16,128)(2,1)} parameter(0)
  ROOT %whole = bf16[2048,2048]{1,0:T(16,128)(2,1)} all-gather(%part), channel_id=1, replica_groups=mesh['axis_0'=8] {'axis_0'}, dimensions={0}
}

%tiles (old: bf16[8,2048,2048]) -> bf16[8,2048,2048] {
  %old = bf16[8,2048,2048]{2,1,0:T(16,128)(2,1)} parameter(0)
  ROOT %new = bf16[8,2048,2048]{2,1,0:T(8,128)(2,1)} copy(%old)
}

%write (stack: bf16[8,2048,2048], layer: bf16[1,2048,2048], i: s32[]) -> bf16[8,2048,2048] {
  %stack = bf16[8,2048,2048]{2,1,0:T(16,128)(2,1)} parameter(0)
  %view = bf16[8,2048,2048]{2,1,0:T(8,128)(2,1)} fusion(%stack), kind=kLoop, output_to_operand_aliasing={{}: (0, {})}, calls=%tiles
  %layer = bf16[1,2048,2048]{2,1,0:T(8,128)(2,1)} parameter(1)
  %i = s32[]{:T(128)} parameter(2)
  %zero = s32[]{:T(128)} constant(0)
  ROOT %update = bf16[8,2048,2048]{2,1,0:T(16,128)(2,1)} dynamic-update-slice(%view, %layer, %i, %zero, %zero)
}

ENTRY %main (a: bf16[256,2048], b: bf16[8,2048,2048], c: bf16[1,2048,2048], j: s32[]) -> bf16[8,2048,2048] {
  %a = bf16[256,2048]{1,0:T(16,128)(2,1)} parameter(0)
  %b = bf16[8,2048,2048]{2,1,0:T(16,128)(2,1)} parameter(1)
  %c = bf16[1,2048,2048]{2,1,0:T(8,128)(2,1)} parameter(2)
  %j = s32[]{:T(128)S(6)} parameter(3)
  %ready = token[] custom-call(), custom_call_target="PrepareAsyncCallDone"
  %start = ((bf16[256,2048]{1,0:T(16,128)(2,1)}, token[]), bf16[2048,2048]{1,0:T(16,128)(2,1)}) call-start(%a, %ready), async_execution_thread="sparsecore", to_apply=%gather
  %done = bf16[2048,2048]{1,0:T(16,128)(2,1)} call-done(%start)
  ROOT %out = bf16[8,2048,2048]{2,1,0:T(16,128)(2,1)} fusion(%b, %c, %j), kind=kLoop, calls=%write
}
"""  # noqa: E501


def test_what_tpu7x_does_in_its_own_way():
    p = Traffic(TPU7X)
    layer = 2 * SIZE * SIZE
    assert [(c.kind, c.group_size, c.times) for c in p.collectives()] == [("all-gather", 8, 1)]
    assert sent(p) == 7 / 8 * layer
    # The gathered weight is read in part and written whole; the layer is read and written.
    assert p.memory_bytes() == (1 / 8 + 1) * layer + 2 * layer
