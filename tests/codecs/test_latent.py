import jax
import jax.numpy as jnp
import numpy as np
import pytest

from var_jax.codecs.latent import Latent
from var_jax.pyramid import ScalePyramid

PYRAMID = ScalePyramid.from_patch_nums((1, 2, 3, 4))
CODEC = Latent(PYRAMID, code_dim=5, scale=0.25)


def features(batch=2):
    shape = (batch, *PYRAMID.grid, CODEC.code_dim)
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


def call(method, *args, codec=CODEC):
    return codec.apply({}, *args, method=method)


def test_a_fold_of_advance_gives_the_inputs_of_a_lesson():
    lesson = call("lesson", features())
    carry = None
    inputs = PYRAMID.split(lesson.inputs)
    assert not np.any(inputs[0])
    for k, target in enumerate(PYRAMID.split(lesson.targets)):
        carry, following = call("advance", carry, k, target)
        if k + 1 < PYRAMID.num_levels:
            np.testing.assert_allclose(following, inputs[k + 1], atol=1e-6)
    assert following is None
    np.testing.assert_allclose(call("finish", carry), features(), atol=1e-6)


def test_encoding_loses_nothing_and_the_scale_is_undone():
    targets = call("encode", features())
    assert targets.shape == (2, PYRAMID.length, *CODEC.target.shape)
    np.testing.assert_allclose(call("decode", targets), features(), atol=1e-6)
    np.testing.assert_allclose(targets[:, 0] * CODEC.scale, features().mean((1, 2)), atol=1e-6)


def test_a_level_is_the_same_in_any_pyramid():
    other = ScalePyramid.from_patch_nums((2, 4))
    whole, short = call("lesson", features()), call("lesson", features(), other)
    np.testing.assert_array_equal(short.targets[:, :4], whole.targets[:, 1:5])
    np.testing.assert_array_equal(short.targets[:, 4:], whole.targets[:, -16:])


def test_what_is_stored_is_what_a_lesson_reads():
    stored = call("read", features())
    CODEC.source.check(np.asarray(stored))
    assert stored.dtype == CODEC.source.stored_dtype
    lesson = call("lesson", stored)
    assert lesson.targets.dtype == lesson.inputs.dtype == jnp.float32
    np.testing.assert_allclose(lesson.targets, call("encode", features()), atol=5e-3)


def test_the_loss_of_a_tokenizer_fixes_mean_and_variance_of_the_features():
    x = features(8)
    x = (x - x.mean((0, 1, 2))) / x.std((0, 1, 2)) * CODEC.scale
    fitting = call("quantize", x)
    np.testing.assert_array_equal(fitting.features, x)
    assert abs(float(fitting.loss)) < 1e-6
    np.testing.assert_allclose(fitting.metrics["latent_std"], CODEC.scale, rtol=1e-5)
    for other in (2 * x, 0.5 * x, x + 0.1):
        assert call("quantize", other).loss > 0.05
        assert call("quantize", other, True).loss == 0
    gradient = jax.grad(lambda x: call("quantize", x).loss)
    assert (gradient(2 * x) * x).sum() > 0 > (gradient(0.5 * x) * x).sum()


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="positive"):
        Latent(PYRAMID, 5, scale=0.0)
    with pytest.raises(ValueError, match="float8"):
        Latent(PYRAMID, 5, stored="float8")
    with pytest.raises(ValueError, match="patch_nums"):
        call("encode", features()[:, :2])
