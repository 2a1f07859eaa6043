import jax
import jax.numpy as jnp
import numpy as np
import pytest

from var_jax.fields import Field
from var_jax.heads.bitwise import BitwiseHead, BitwiseSampling, choose_bits
from var_jax.heads.filters import filter_logits
from var_jax.parallel import sharding
from var_jax.pyramid import ScalePyramid

PYRAMID = ScalePyramid.from_patch_nums((1, 2))
WIDTH = 8


def bits(num_bits):
    return Field("bits", (num_bits,), "uint8", num_values=2)


def make(num_bits, width=WIDTH):
    head = BitwiseHead(bits(num_bits), width, init_factor=4.0)
    params = sharding.unbox(head.init(jax.random.key(0), jnp.zeros((1, 1, width))))
    hidden = jax.random.normal(jax.random.key(1), (2, PYRAMID.length, width))
    return head, params, hidden


@pytest.mark.parametrize("num_bits", [1, 4, 8])
def test_the_probabilities_of_all_codes_sum_to_1(num_bits):
    head, params, hidden = make(num_bits)
    codes = (jnp.arange(2**num_bits)[:, None] >> jnp.arange(num_bits) & 1).astype(jnp.uint8)

    def nll(code):
        target = jnp.broadcast_to(code, (*hidden.shape[:2], num_bits))
        return head.apply(params, hidden, target, method="loss")[1]["loss"]

    total = jnp.exp(-jax.vmap(nll)(codes)).sum(0)
    np.testing.assert_allclose(total, 1, rtol=1e-5)


def test_the_loss_is_a_softmax_over_each_bits_two_logits():
    head, params, hidden = make(3)
    target = jax.random.bernoulli(jax.random.key(2), shape=(2, PYRAMID.length, 3)).astype(jnp.uint8)
    loss, metrics = head.apply(params, hidden, target, method="loss")
    kernel, bias = (params["params"]["projection"][k] for k in ("kernel", "bias"))
    logits = jnp.einsum("bnc,ckd->bndk", hidden, kernel) + bias.T
    log_p = jax.nn.log_softmax(logits)
    nll = -jnp.take_along_axis(log_p, target[..., None].astype(int), -1)[..., 0]
    np.testing.assert_allclose(loss, nll.mean(-1), rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"], nll.sum(-1), rtol=1e-5)
    np.testing.assert_allclose(metrics["accuracy"], (logits.argmax(-1) == target).mean(-1))


def test_parameters_grow_with_the_bits_not_with_the_codes():
    def count(num_bits):
        head = BitwiseHead(bits(num_bits), 1024)
        shapes = jax.eval_shape(head.init, jax.random.key(0), jnp.zeros((1, 1, 1024)))
        return sum(x.size for x in jax.tree.leaves(shapes))

    assert count(64) == 2 * 64 * (1024 + 1)
    assert count(64) == 8 * count(8)


@pytest.mark.parametrize("top_p", [0.0, 0.5, 0.7, 0.9, 1.0])
def test_filters_are_those_of_categories(top_p):
    log_odds = jnp.linspace(-5, 5, 101)
    logits = jnp.stack([jnp.zeros_like(log_odds), log_odds], -1)
    kept = jnp.isfinite(filter_logits(logits, 0, top_p))
    settings = BitwiseSampling(1.0, top_p)
    # Noise without bounds shows which values can be drawn.
    ones, zeros = (choose_bits(log_odds, jnp.full(101, x), settings) for x in (1e9, -1e9))
    np.testing.assert_array_equal(jnp.stack([zeros == 0, ones == 1], -1), kept)


def test_draws_follow_temperature_and_guidance():
    head, params, hidden = make(6)
    uncond = hidden[::-1]
    weights, temperature = (2.5, -1.5), 0.7
    keys = jax.random.split(jax.random.key(3), 4000)
    pair = tuple(jnp.broadcast_to(h[:1], (4000, *h.shape[1:])) for h in (hidden, uncond))
    settings = BitwiseSampling(temperature, 0.0).at(0, PYRAMID)
    drawn, again = jax.jit(
        lambda keys: head.apply(params, pair, weights, keys, settings, method="sample")
    )(keys)
    np.testing.assert_array_equal(drawn, again)
    log_odds = 2.5 * head.apply(params, hidden[:1]) - 1.5 * head.apply(params, uncond[:1])
    expected = jax.nn.sigmoid(log_odds / temperature)
    np.testing.assert_allclose(drawn.mean(0, keepdims=True), expected, atol=0.05)


def test_a_draw_is_an_examples_own_and_greedy_needs_no_key():
    head, params, hidden = make(6)
    hidden, keys = jnp.tile(hidden, (4, 1, 1)), jax.random.split(jax.random.key(4), 8)

    def sample(hidden, keys, **settings):
        settings = BitwiseSampling(**settings).at(1, PYRAMID)
        return head.apply(params, (hidden,), (1.0,), keys, settings, method="sample")[0]

    together = sample(hidden, keys)
    np.testing.assert_array_equal(together[3:4], sample(hidden[3:4], keys[3:4]))
    assert together.dtype == jnp.uint8
    greedy = sample(hidden, keys, top_k=1)
    np.testing.assert_array_equal(greedy, head.apply(params, hidden) > 0)


def test_settings_by_level():
    settings = BitwiseSampling(temperature=(1.0, 0.5), top_k=(0, 1))
    assert settings.at(1, PYRAMID) == BitwiseSampling(0.5, 0.97, 1)
    with pytest.raises(ValueError, match="temperature has 3 values"):
        BitwiseSampling(temperature=(1.0, 1.0, 1.0)).at(0, PYRAMID)


def test_other_targets_are_named():
    with pytest.raises(ValueError, match=r"tokens \[\] of 4096 values"):
        BitwiseHead(Field("tokens", (), num_values=4096), WIDTH)
