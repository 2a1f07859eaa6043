"""MAR's masked autoencoder: what it reads, its room for known tokens, and its published sizes."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recipes import load
from small_network import filled

from var_jax import build
from var_jax.plan.flops import num_parameters
from var_jax.pyramid import ScalePyramid
from var_jax.transformer.layers import dropout
from var_jax.transformer.mar import MAR

PYRAMID, CODE_DIM, WIDTH = ScalePyramid(((3, 3),)), 2, 16


def mar(pyramid=PYRAMID, **settings):
    return MAR(pyramid, 5, CODE_DIM, 1, WIDTH, 2, **{"num_buffer": 2, **settings})


@functools.cache
def program():
    module = mar()
    given = (jnp.zeros((1, 9, CODE_DIM)), jnp.zeros(1, jnp.int32))
    params = filled(lambda key: module.init(key, *given)["params"], 0)

    def run(tokens, masked, max_known):
        labels = jnp.arange(len(tokens))
        return module.apply({"params": params}, tokens, labels, masked=masked, max_known=max_known)

    return jax.jit(run, static_argnums=2)


def hidden_states(tokens, masked, max_known):
    return np.asarray(program()(tokens, masked, max_known))


@pytest.fixture(scope="module")
def example():
    rng = np.random.default_rng(0)
    tokens = rng.normal(size=(2, 9, CODE_DIM)).astype("f4")
    # Six and eight of nine.
    masked = np.array([[1, 0, 1, 1, 0, 1, 0, 1, 1], [1, 1, 1, 1, 0, 1, 1, 1, 1]], bool)
    return tokens, masked, hidden_states(tokens, masked, 3)


def test_masked_tokens_are_not_read_and_known_ones_are_by_all(example):
    tokens, masked, before = example
    changed = tokens + masked[..., None]
    np.testing.assert_array_equal(hidden_states(changed, masked, 3), before)
    changed = tokens.copy()
    changed[:, 4] += 1
    difference = np.abs(hidden_states(changed, masked, 3) - before).max(-1)
    assert difference.min() > 1e-4


def test_room_that_is_left_over_changes_nothing(example):
    tokens, masked, before = example
    np.testing.assert_allclose(hidden_states(tokens, masked, 9), before, rtol=0, atol=1e-5)
    none = np.ones_like(masked)
    without = hidden_states(tokens, none, 0)
    np.testing.assert_allclose(hidden_states(tokens, none, 3), without, rtol=0, atol=1e-5)
    assert mar().max_known == 9 - 7


def test_dropout_is_of_training_alone_and_of_each_example(example):
    tokens, masked, before = example
    params = filled(lambda key: mar().init(key, tokens[:1], jnp.zeros(1, jnp.int32))["params"], 0)
    keys = jax.random.split(jax.random.key(0), 2)

    @functools.partial(jax.jit, static_argnums=0)
    def run(rate, rows, keys):
        module = mar(dropout=rate, class_drop_rate=0.0)
        given = (jnp.asarray(tokens)[rows], rows, keys)
        return module.apply(
            {"params": params}, *given, masked=jnp.asarray(masked)[rows], max_known=3
        )

    both = np.arange(2)
    np.testing.assert_allclose(run(0.3, both, None), before, atol=1e-5)
    np.testing.assert_allclose(run(0.0, both, keys), before, atol=1e-5)
    dropped = run(0.3, both, keys)
    assert np.abs(dropped - before).max(-1).min() > 1e-3
    np.testing.assert_allclose(run(0.3, both[::-1], keys[::-1])[::-1], dropped, atol=1e-5)
    assert np.abs(run(0.3, both, keys[::-1]) - dropped).max(-1).min() > 1e-3


def test_dropout_keeps_the_mean():
    x, keys = jnp.ones((3, 200, 100), jnp.bfloat16), jax.random.split(jax.random.key(1), 3)
    dropped = np.asarray(dropout(x, 0.2, keys), "f4")
    assert set(np.unique(dropped)) == {0, 1.25}
    np.testing.assert_allclose(dropped.mean((1, 2)), 1, atol=0.02)
    assert (dropped[0] != dropped[1]).any()
    np.testing.assert_array_equal(dropout(x, 0.2, None), x)


@pytest.mark.parametrize("variant, published", [("base", 208), ("large", 479), ("huge", 943)])
def test_published_sizes(variant, published):
    """Officially keys have a bias, which changes nothing; millions are rounded up."""
    network = build.network(load("family/mar", variant))
    params = jax.eval_shape(network.init_params, jax.random.key(0))
    biases = 2 * network.mar.depth * network.mar.width
    assert math.ceil((num_parameters(params) + biases) / 1e6) == published


@pytest.mark.parametrize(
    "settings, message",
    [
        (dict(pyramid=ScalePyramid(((1, 1), (3, 3)))), "draws the tokens of one level"),
        (dict(num_buffer=0), "num_buffer is 0"),
        (dict(min_masked=1.5), "min_masked 1.5"),
        (dict(remat="some"), "Unknown remat 'some'"),
    ],
)
def test_settings_that_do_not_fit_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        mar(**settings)
