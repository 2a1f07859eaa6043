"""Operation counts against XLA's own, and the formula against the traced model."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec as P

from var_jax.context import OwnScale, RecentLevels
from var_jax.heads.categorical import CategoricalHead
from var_jax.network import Network
from var_jax.parallel import sharding
from var_jax.plan.flops import forward_flops, num_parameters, program_flops, times_computed
from var_jax.pyramid import ScalePyramid
from var_jax.transformer.var import VAR


def traced(f, *args):
    return program_flops(jax.jit(f).trace(*args).jaxpr)


def test_products_loops_and_branches():
    a, b = jnp.zeros((8, 16)), jnp.zeros((16, 32))
    once = 2 * 8 * 16 * 32
    assert traced(jnp.matmul, a, b) == once
    loop = lambda a, b: jax.lax.scan(lambda c, _: (c, a @ b), 0.0, None, length=7)  # noqa: E731
    assert traced(loop, a, b) == 7 * once
    branch = lambda a, b: jax.lax.cond(a[0, 0] > 0, lambda: a @ b, lambda: a @ b * 0)  # noqa: E731
    assert traced(branch, a, b) == once
    image, kernel = jnp.zeros((2, 8, 8, 4)), jnp.zeros((3, 3, 4, 16))
    conv = lambda x, k: jax.lax.conv_general_dilated(  # noqa: E731
        x, k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    assert traced(conv, image, kernel) == 2 * (2 * 8 * 8 * 16) * (3 * 3 * 4)


def test_a_named_value_counts_as_often_as_it_is_computed():
    def body(c, _):
        return checkpoint_name(c + 1, "mine"), None

    def run(x):
        x = checkpoint_name(x, "other")
        x, _ = jax.lax.scan(body, jax.jit(lambda x: checkpoint_name(x, "mine"))(x), None, length=5)
        return x

    traced = jax.jit(run).trace(0.0).jaxpr
    assert times_computed(traced, "mine") == 6 and times_computed(traced, "other") == 1


def test_rematerialisation_counts():
    w = jnp.zeros((16, 16))

    def loss(w, x, wrap):
        layer = lambda x: jnp.tanh(jnp.tanh(x @ w) @ w)  # noqa: E731
        return jnp.sum(wrap(layer)(x))

    x = jnp.zeros((4, 16))
    plain = traced(jax.grad(lambda w: loss(w, x, lambda f: f)), w)
    remat = traced(jax.grad(lambda w: loss(w, x, jax.checkpoint)), w)
    assert remat - plain == pytest.approx(2 * 2 * 4 * 16 * 16, rel=0.51)
    assert remat > plain


def test_a_share_of_a_device_counts_for_all_devices():
    mesh = sharding.make_mesh(data=8)
    mapped = jax.shard_map(lambda x, w: x @ w, mesh=mesh, in_specs=(P("data"), P()),
                           out_specs=P("data"))  # fmt: skip
    assert traced(mapped, jnp.zeros((16, 4)), jnp.zeros((4, 4))) == 2 * 16 * 4 * 4


@pytest.mark.parametrize(
    "context, levels",
    [(None, None), (RecentLevels(1), None), (OwnScale(), range(3)), (OwnScale(), range(3, 4))],
)
def test_formula_equals_the_traced_model(context, levels):
    pyramid = ScalePyramid.from_patch_nums((1, 2, 3, 4))
    options = {} if context is None else {"context": context}
    var = VAR(pyramid, 10, 8, depth=3, width=64, num_heads=2, attention_implementation="xla",
              **options)  # fmt: skip
    head = CategoricalHead(32, 64)
    labels = jnp.zeros((2,), jnp.int32)
    params = jax.eval_shape(var.init, jax.random.key(0), jnp.zeros((2, pyramid.length, 8)), labels)
    length = pyramid.part(levels or range(4)).length
    tokens, hidden = (jax.ShapeDtypeStruct((2, length, n), jnp.float32) for n in (8, 64))
    head_params = jax.eval_shape(head.init, jax.random.key(0), hidden)
    apply = jax.jit(functools.partial(var.apply, levels=levels))
    model = program_flops(apply.trace(params, tokens, labels).jaxpr)
    model += program_flops(jax.jit(head.apply).trace(head_params, hidden).jaxpr)
    assert 2 * forward_flops(Network(var, head), None, levels) == pytest.approx(model, rel=0.05)


def test_formula_is_close_to_xla(tmp_path):
    """XLA also counts additions and the like; with the layers unrolled it counts all of them."""
    pyramid = ScalePyramid.from_patch_nums((1, 2, 4, 8))
    var = VAR(pyramid, 10, 8, depth=2, width=256, num_heads=4, scan_unroll=2,
              attention_implementation="xla")  # fmt: skip
    tokens, labels = jnp.zeros((1, pyramid.length, 8)), jnp.zeros((1,), jnp.int32)
    params = jax.eval_shape(var.init, jax.random.key(0), tokens, labels)
    counted = jax.jit(var.apply).lower(params, tokens, labels).compile().cost_analysis()["flops"]
    assert forward_flops(Network(var, CategoricalHead(0, 256))) == pytest.approx(counted, rel=0.05)


def test_number_of_parameters():
    assert num_parameters({"a": np.zeros((2, 3)), "b": jnp.zeros(())}) == 7
