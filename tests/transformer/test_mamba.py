import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from recipes import load
from small_network import CLASSES, CODE_DIM, PYRAMID, filled

from var_jax import build
from var_jax.context import OwnScale
from var_jax.heads.categorical import CategoricalHead
from var_jax.network import Network, sampling_params
from var_jax.plan.flops import num_parameters
from var_jax.train.optim import decay_mask
from var_jax.transformer.cache import Cache
from var_jax.transformer.mamba import Mamba2
from var_jax.transformer.var import VAR

LABELS = np.array([2, 0])
MAMBA = Mamba2(32, state_dim=8, head_dim=16, chunk=4)


def network(**settings):
    settings = dict(context=OwnScale(), mixer=MAMBA) | settings
    var = VAR(PYRAMID, CLASSES, CODE_DIM, depth=2, width=32, num_heads=2, **settings)
    return Network(var, CategoricalHead(16, 32))


@functools.cache
def model():
    """(network, its parameters, inputs)."""
    made = network()
    inputs = np.random.default_rng(1).normal(size=(2, PYRAMID.length, CODE_DIM))
    return made, filled(made.init_params, 0), inputs.astype(np.float32)


@functools.partial(jax.jit, static_argnames=("network", "levels"))
def hidden(network, params, inputs, levels=range(PYRAMID.num_levels), cache=None, labels=LABELS):
    return network.hidden(params, inputs, labels, levels=levels, cache=cache)


def rows(inputs, levels):
    return inputs[:, PYRAMID.tokens(levels)]


@pytest.mark.parametrize("ends", [(1, 2, 3), (2, 3)])
def test_a_carried_state_is_a_rescan(ends):
    """Level by level, and from where another model would take over."""
    made, params, inputs = model()
    whole, _ = hidden(made, params, inputs)
    cache, start, found = Cache(), 0, []
    for end in ends:
        levels = range(start, end)
        output, cache = hidden(made, params, rows(inputs, levels), levels, cache)
        found.append(output)
        start = end
    np.testing.assert_allclose(np.concatenate(found, 1), whole, rtol=2e-4, atol=2e-5)
    # The state does not grow, and no keys are kept.
    assert cache.runs == ((),)
    assert cache.states[0].memory.shape == (2, 2, 4, 16, 8)
    assert cache.states[0].x.shape == (2, 2, 3, 4, 16)


def test_states_follow_their_examples():
    made, params, inputs = model()
    _, cache = hidden(made, params, rows(inputs, range(2)), range(2), Cache())
    last, turned = rows(inputs, range(2, 3)), np.array([1, 1, 0])
    expected, _ = hidden(made, params, last, range(2, 3), cache)
    found, _ = hidden(
        made, params, last[turned], range(2, 3), cache.reindex(turned), LABELS[turned]
    )
    np.testing.assert_allclose(found, expected[turned], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("level", [1, 2])
def test_no_level_sees_a_finer_one_and_each_sees_all_coarser_ones(level):
    made, params, inputs = model()
    before, _ = hidden(made, params, inputs)
    changed, _ = hidden(made, params, inputs + 1.0 * (PYRAMID.level_ids == level)[:, None])
    moved = np.abs(before - changed).max((0, 2))
    assert (moved[: PYRAMID.offsets[level]] == 0).all()
    assert (moved[PYRAMID.offsets[level] :] > 1e-4).all()


def test_the_layer_reads_tokens_in_order():
    layer = MAMBA.layer("mixer")
    x = np.random.default_rng(2).normal(size=(2, 11, 32)).astype(np.float32)
    params = filled(lambda key: layer.init(key, x)["params"], 3)
    run = jax.jit(lambda x: layer.apply({"params": params}, x)[0])
    for i in (0, 5, 10):
        moved = np.abs(run(x) - run(x + 1.0 * (np.arange(11) == i)[:, None])).max((0, 2))
        assert (moved[:i] == 0).all() and (moved[i:] > 1e-5).all()


def test_with_a_silent_mixer_it_is_own_scale_attention():
    made, params, inputs = model()
    blocks = dict(params["transformer"]["blocks"])
    out = {"kernel": np.zeros_like(blocks["mixer"]["out"]["kernel"])}
    blocks["mixer"] = {**blocks["mixer"], "out": out}
    silent, _ = hidden(made, with_blocks(params, blocks), inputs)
    del blocks["mixer"]
    # Of gammas, scales and shifts, those of attention and MLP.
    kept = np.array([0, 2, 3, 5, 6, 8])
    adaln = blocks["adaln"]
    blocks["adaln"] = {"kernel": adaln["kernel"][:, :, kept], "bias": adaln["bias"][:, kept]}
    plain, _ = hidden(network(mixer=None), with_blocks(params, blocks), inputs)
    np.testing.assert_allclose(silent, plain, rtol=1e-5, atol=1e-6)
    assert np.abs(hidden(made, params, inputs)[0] - plain).max() > 1e-2


def with_blocks(params, blocks):
    return {**params, "transformer": {**params["transformer"], "blocks": blocks}}


def test_the_recurrence_is_float32_in_any_model():
    mixer = Mamba2(32, jnp.bfloat16, state_dim=8, head_dim=16, chunk=4)
    made = network(mixer=mixer, dtype=jnp.bfloat16)
    _, params, inputs = model()
    cast = sampling_params(made, params)
    kept = cast["transformer"]["blocks"]["mixer"]
    assert {str(kept[name].dtype) for name in ("A_log", "D", "dt_bias")} == {"float32"}
    assert kept["x"]["kernel"].dtype == jnp.bfloat16
    expected, _ = hidden(network(), params, inputs)
    output, cache = hidden(made, cast, inputs, cache=Cache())
    assert np.abs(output - expected).max() < 0.05 * np.abs(expected).max()
    assert cache.states[0].memory.dtype == jnp.float32 and cache.states[0].x.dtype == jnp.bfloat16


@pytest.mark.parametrize("size, millions", [("d16", 464.2), ("d20", 900.5), ("d24", 1550.1)])
def test_sizes_as_published(size, millions):
    """464 M, 900 M and 1.5 B."""
    made = build.network(load("family/m_var", size))
    shapes = jax.eval_shape(made.init_params, jax.random.key(0))
    assert round(num_parameters(shapes) / 1e6, 1) == millions


def test_products_and_convolutions_decay_and_nothing_else():
    blocks = model()[1]["transformer"]["blocks"]
    mask = flatten_dict(decay_mask({"mixer": blocks["mixer"]}), sep="/")
    kernels = {f"mixer/{name}/kernel" for name in ("z", "x", "bc", "dt", "out")}
    kernels |= {"mixer/conv_x/kernel", "mixer/conv_bc/kernel"}
    assert {name for name, decays in mask.items() if decays} == kernels


def test_channels_divide_into_heads():
    with pytest.raises(ValueError, match="2 \\* 32 channels, which do not divide into heads of 48"):
        Mamba2(32, head_dim=48)
