"""Random masks of one level: how many, which, and what the loss reads."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recipes import load
from small_network import filled

from var_jax import build
from var_jax.objectives.masked import over_masked
from var_jax.objectives.random_order import RandomOrder


@functools.cache
def objective():
    config = load("family/mar", "smallest")
    tokenizer = build.LoadedTokenizer(build.tokenizer(config), None, "", config)
    return build.objective(config, tokenizer, from_images=False)


def test_shares_and_orders_are_drawn_for_each_example():
    keys = jax.random.split(jax.random.key(0), 4000)
    masked = np.asarray(objective().draw_masks(keys, 4000))
    counts, length = masked.sum(1), masked.shape[1]
    assert counts.min() == math.ceil(0.7 * length) and counts.max() == length
    assert np.ptp(masked.mean(0)) < 0.05 and len(np.unique(masked, axis=0)) > 500
    # A normal distribution cut off at -1.2 and 0; rounded up by half a token.
    density, mass = (1 - math.exp(-0.72)) / math.sqrt(2 * math.pi), math.erf(1.2 / 2**0.5) / 2
    assert abs(counts.mean() / length - (1 - 0.25 * density / mass) - 0.5 / length) < 0.01
    some = objective().draw_masks(keys[5:7], 2)
    np.testing.assert_array_equal(some, masked[5:7])


def test_the_loss_is_of_masked_tokens_and_reads_the_others():
    made = objective()
    params = filled(made.init_params, 0)
    codec = made.tokenizer.codec
    frozen = {"tokenizer": {"codec": {"moments": jnp.array([0.0, 1.0])}}}
    masked = np.asarray(made.draw_masks(None, 1))[0]
    rng = np.random.default_rng(0)
    moments = rng.normal(size=(1, *codec.source.shape)).astype("f4")
    run = jax.jit(lambda moments: made.per_token(params, frozen, batch(moments))[0][0])

    def batch(moments):
        return {"moments": moments, "label": jnp.zeros(1, jnp.int32)}

    def changed(token):
        """Which tokens' losses another latent changes."""
        other = moments.copy().reshape(1, len(masked), -1)
        other[:, token, : codec.code_dim] += 1
        return np.abs(np.asarray(run(other.reshape(moments.shape)) - run(moments))) > 1e-6

    loss = np.asarray(run(moments))
    assert 0 < masked.sum() < len(masked)
    np.testing.assert_array_equal(loss > 0, masked)
    hidden, known = np.flatnonzero(masked)[0], np.flatnonzero(~masked)[0]
    np.testing.assert_array_equal(changed(hidden), np.arange(len(masked)) == hidden)
    assert changed(known).any() and not changed(known)[~masked].any()


def test_means_over_masked_tokens():
    x, masked = jnp.arange(8.0).reshape(2, 4), jnp.array([[1, 0, 0, 1], [0, 0, 0, 0]], bool)
    np.testing.assert_allclose(over_masked(x, masked).mean(1), [1.5, 0])


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("transformer", "var", "choose model.transformer 'mar'"),
        ("head", dict(kind="flow", net_width=32, net_depth=1), "choose model.head 'diffusion'"),
    ],
)
def test_what_it_cannot_train_is_refused(key, value, message):
    config = load("family/mar", "smallest")
    with config.unlocked(), config.ignore_type():
        config.model[key] = value
        if key == "transformer":
            del config.model["num_buffer"]
    tokenizer = build.tokenizer(config)
    with pytest.raises(ValueError, match=message):
        RandomOrder(build.network(config), tokenizer)
