import jax
import jax.numpy as jnp
import numpy as np
import pytest

from var_jax.heads.categorical import CategoricalHead, LevelSampling
from var_jax.heads.filters import filter_logits
from var_jax.pyramid import ScalePyramid

PYRAMID = ScalePyramid.from_patch_nums((1, 2))


def reference(logits, top_k, top_p):
    """The official filter, with sorting, in float64 (where no two logits are equal)."""
    logits = logits.astype(np.float64)
    if top_k:
        kth = np.sort(logits, -1)[..., -top_k][..., None]
        logits = np.where(logits < kth, -np.inf, logits)
    if top_p:
        order = np.argsort(logits, -1)
        ranked = np.take_along_axis(logits, order, -1)
        p = np.exp(ranked - ranked.max(-1, keepdims=True))
        drop = np.cumsum(p / p.sum(-1, keepdims=True), -1) <= 1 - top_p
        drop[..., -1] = False
        removed = np.zeros_like(drop)
        np.put_along_axis(removed, order, drop, -1)
        logits = np.where(removed, -np.inf, logits)
    return np.isfinite(logits)


@pytest.mark.parametrize("top_k", [0, 1, 5, 99, 100])
@pytest.mark.parametrize("top_p", [0.0, 0.3, 0.96, 1e-6])
def test_the_kept_tokens_are_those_of_the_sorting_filter(top_k, top_p):
    logits = np.random.default_rng(0).normal(size=(4, 7, 100)).astype(np.float32) * 3
    kept = np.isfinite(filter_logits(jnp.asarray(logits), top_k, top_p))
    np.testing.assert_array_equal(kept, reference(logits, top_k, top_p))


def test_settings_that_are_arrays_keep_the_same_tokens_in_one_program():
    logits = np.random.default_rng(0).normal(size=(4, 7, 100)).astype(np.float32) * 3
    compiled = jax.jit(filter_logits)
    for top_k in (0, 1, 5, 100, 900):
        for top_p in (0.0, 0.3, 0.96, 1.0):
            kept = compiled(logits, top_k, top_p)
            np.testing.assert_array_equal(kept, filter_logits(jnp.asarray(logits), top_k, top_p))
    assert compiled._cache_size() == 1


def test_top_k_of_a_bfloat16_head_keeps_k():
    """Logits that were rounded to bfloat16 would tie with the last kept."""
    head = CategoricalHead(4096, 64, init_factor=20.0, dtype=jnp.bfloat16)
    hidden = jax.random.normal(jax.random.key(0), (1, 8, 64))
    variables = head.init(jax.random.key(1), hidden)
    logits = jax.jit(head.apply)(variables, hidden)
    np.testing.assert_array_equal(np.isfinite(filter_logits(logits, 900)).sum(-1), 900)


def test_ties_with_the_last_kept_stay():
    logits = jnp.array([3.0, 1.0, 1.0, 1.0, 0.0])
    np.testing.assert_array_equal(
        np.isfinite(filter_logits(logits, top_k=2)), [True, True, True, True, False]
    )
    same = jnp.zeros(6)
    assert np.isfinite(filter_logits(same, top_k=1, top_p=0.5)).all()


def test_signs_zeros_and_infinities_keep_their_order():
    logits = jnp.array([-jnp.inf, -2.0, -0.0, 0.0, 1e-30, 5.0, 1e30])
    kept = np.isfinite(filter_logits(logits, top_k=3))
    np.testing.assert_array_equal(kept, [0, 0, 0, 0, 1, 1, 1])


def test_loss_is_cross_entropy_and_smoothing_spreads_it():
    hidden = jax.random.normal(jax.random.key(0), (2, 3, 8))
    target = jnp.array([[0, 1, 2], [3, 4, 5]])
    plain = CategoricalHead(6, 8, init_factor=10.0)
    variables = plain.init(jax.random.key(1), hidden)
    logits = plain.apply(variables, hidden)
    log_p = jax.nn.log_softmax(logits)
    nll = -jnp.take_along_axis(log_p, target[..., None], -1)[..., 0]
    loss, reported = plain.apply(variables, hidden, target, method="loss")
    np.testing.assert_allclose(loss, nll, rtol=1e-5, atol=1e-6)
    smooth = CategoricalHead(6, 8, label_smoothing=0.1, init_factor=10.0)
    expected = 0.9 * nll - 0.1 * log_p.mean(-1)
    loss, also = smooth.apply(variables, hidden, target, method="loss")
    np.testing.assert_allclose(loss, expected, rtol=1e-5, atol=1e-6)
    for found in (reported, also):
        np.testing.assert_allclose(found["loss"], nll, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(found["accuracy"], logits.argmax(-1) == target)


def test_sampling_follows_the_guided_distribution():
    head = CategoricalHead(4, 2, init_factor=30.0)
    hidden = jnp.tile(jnp.array([[[1.0, 0.5]]]), (4000, 1, 1))
    uncond = jnp.tile(jnp.array([[[-0.5, 1.0]]]), (4000, 1, 1))
    variables = head.init(jax.random.key(0), hidden[:1])
    keys = jax.random.split(jax.random.key(1), 4000)
    tokens, code = head.apply(
        variables,
        (hidden, uncond),
        (2.5, -1.5),
        keys,
        LevelSampling(0, PYRAMID),
        method="sample",
    )
    logits = 2.5 * head.apply(variables, hidden[:1]) - 1.5 * head.apply(variables, uncond[:1])
    expected = np.asarray(jax.nn.softmax(logits)[0, 0])
    counts = np.bincount(np.asarray(tokens[:, 0]), minlength=4) / 4000
    np.testing.assert_allclose(counts, expected, atol=0.03)
    np.testing.assert_array_equal(tokens, code)


def test_smooth_codes_are_distributions_that_sharpen():
    head = CategoricalHead(16, 8, init_factor=10.0)
    hidden = jax.random.normal(jax.random.key(0), (3, 5, 8))
    variables = head.init(jax.random.key(1), hidden)
    keys = jax.random.split(jax.random.key(2), 3)
    peaks = []
    for level in (0, 1):
        settings = LevelSampling(level, PYRAMID, top_k=8, smooth=True)
        _, code = head.apply(variables, (hidden,), (1.0,), keys, settings, method="sample")
        np.testing.assert_allclose(code.sum(-1), 1, rtol=1e-5)
        assert ((code > 0).sum(-1) <= 8).all()
        peaks.append(float(code.max(-1).mean()))
    assert peaks[1] > peaks[0]
    assert LevelSampling(0, PYRAMID).smooth_temperature == pytest.approx(0.27)
    assert LevelSampling(1, PYRAMID).smooth_temperature == pytest.approx(0.0135)
