import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from var_jax.codecs.kl_latent import KLLatent
from var_jax.codecs.latent import Latent
from var_jax.pyramid import ScalePyramid

PYRAMID = ScalePyramid.from_patch_nums((1, 2, 3, 4))
CODEC = KLLatent(PYRAMID, code_dim=5)
MEAN, STD = 0.5, 2.0
PARAMS = {"moments": jnp.array([MEAN, MEAN**2 + STD**2])}


def features(batch=2, log_variance=-2.0):
    shape = (batch, *PYRAMID.grid, CODEC.code_dim)
    mean = MEAN + STD * np.random.default_rng(0).normal(size=shape)
    return jnp.asarray(np.concatenate([mean, np.full(shape, log_variance)], -1), jnp.float32)


def call(method, *args):
    return CODEC.apply({"params": PARAMS}, *args, method=method)


def keys(batch, seed=0):
    return jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(seed)))(jnp.arange(batch))


def test_a_certain_posterior_is_the_plain_latents():
    plain = Latent(PYRAMID, 5)
    scaled = (features()[..., :5] - MEAN) / STD
    expected = plain.apply({}, scaled, method="lesson")
    for found in (
        call("lesson", features()),
        call("lesson", features(log_variance=-100.0), None, keys(2)),
    ):
        np.testing.assert_allclose(found.inputs, expected.inputs, atol=1e-5)
        np.testing.assert_allclose(found.targets, expected.targets, atol=1e-5)


def test_a_fold_of_advance_gives_the_inputs_of_a_lesson():
    lesson = call("lesson", features(), None, keys(2))
    carry, inputs = None, PYRAMID.split(lesson.inputs)
    for k, target in enumerate(PYRAMID.split(lesson.targets)):
        np.testing.assert_array_equal(call("nearest", features(), carry, k).shape, target.shape)
        carry, following = call("advance", carry, k, target)
        if k + 1 < PYRAMID.num_levels:
            np.testing.assert_allclose(following, inputs[k + 1], atol=1e-6)
    np.testing.assert_allclose(
        call("finish", carry), call("sample", features(), keys(2)), atol=1e-5
    )


def test_the_scale_is_undone():
    targets = call("encode", features())
    np.testing.assert_allclose(call("decode", targets), features()[..., :5], atol=1e-5)
    last = targets[:, PYRAMID.level(3)]
    np.testing.assert_allclose(last * STD + MEAN, features()[..., :5].reshape(2, 16, 5), atol=1e-5)


def test_samples_have_the_moments_of_the_posterior_and_hang_on_their_own_key():
    x = jnp.tile(features(1), (4000, 1, 1, 1))
    drawn = call("sample", x, keys(4000))
    np.testing.assert_allclose(drawn.mean(0), x[0, ..., :5], atol=0.05)
    np.testing.assert_allclose(drawn.std(0), np.exp(-1.0), rtol=0.1)
    np.testing.assert_array_equal(call("sample", x[7:8], keys(8)[7:])[0], drawn[7])
    assert np.abs(call("sample", x[:1], keys(1, 1)) - drawn[:1]).max() > 0.1


def test_what_is_stored_is_what_a_lesson_reads():
    stored = call("read", features())
    CODEC.source.check(np.asarray(stored))
    assert stored.dtype == CODEC.source.stored_dtype
    np.testing.assert_allclose(
        call("lesson", stored).targets, call("encode", features()), atol=5e-3
    )


def test_the_divergence_is_that_of_normal_distributions():
    x = features()
    found = call("quantize", x)
    mean, variance = x[..., :5], np.exp(-2.0)
    # By its definition: the mean over the posterior of the difference of logarithms.
    z = mean + np.exp(-1.0) * np.random.default_rng(1).normal(size=(2000, *mean.shape))
    difference = -0.5 * ((z - mean) ** 2 / variance - 2 - z**2)
    np.testing.assert_allclose(found.loss, difference.mean(), rtol=1e-2)
    np.testing.assert_array_equal(found.features, mean)
    standard = jnp.zeros_like(x)
    assert call("quantize", standard).loss == 0 and call("quantize", x, True).loss == 0


def test_what_is_measured_makes_the_variance_of_the_targets_one():
    found = call("quantize", features(64), False, keys(64))
    moments = found.measured["moments"].mean(0)
    targets = CODEC.apply(
        {"params": {"moments": moments}}, features(64), None, keys(64), method="lesson"
    ).targets[:, PYRAMID.level(3)]
    np.testing.assert_allclose([targets.mean(), targets.std()], [0, 1], atol=1e-5)
    np.testing.assert_allclose(found.metrics["latent_std"], targets.std() * STD, rtol=0.05)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match=r"\(4, 4, 10\)"):
        call("encode", features()[..., :5])
