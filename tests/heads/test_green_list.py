import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recipes import load
from small_network import CLASSES, PYRAMID, VOCAB, generate

from var_jax import build
from var_jax.decoding.guidance import LinearGuidance
from var_jax.decoding.next_scale import NextScale
from var_jax.heads.categorical import CategoricalSampling
from var_jax.heads.green_list import GreenList
from var_jax.heads.watermark import detection_score, false_positive_rate

MARK = GreenList(key=5, delta=3.0)


def draw(*processors, **settings):
    sampling = CategoricalSampling(0, 0.0, processors=processors, **settings)
    return generate(NextScale(LinearGuidance(0.0), sampling), np.arange(200) % CLASSES).targets


def test_half_of_each_level_is_green_by_the_key():
    lists = [MARK.green(level, 4096) for level in range(4)]
    assert [x.sum() for x in lists] == [2048] * 4
    others = [*lists[1:], GreenList(6).green(0, 4096)]
    # Two halves share a quarter of the codes.
    assert all(800 < (lists[0] & x).sum() < 1250 for x in others)
    np.testing.assert_array_equal(GreenList(5, delta=0.1).green(2, 4096), lists[2])
    # Of this key for ever: who marked an image last year finds the mark.
    assert np.flatnonzero(MARK.green(0, 16)).tolist() == [2, 3, 4, 5, 7, 9, 13, 14]


def test_without_a_preference_nothing_changes():
    np.testing.assert_array_equal(draw(dataclasses.replace(MARK, delta=0.0)), draw())


def test_logits_of_green_codes_alone_change_from_the_first_marked_level_on():
    logits = np.random.default_rng(0).normal(size=(2, 3, VOCAB)).astype(np.float32)
    logits[0, 0, :4] = -np.inf
    mark = dataclasses.replace(MARK, first_level=1)
    np.testing.assert_array_equal(mark(jnp.asarray(logits), 0, PYRAMID), logits)
    found = np.asarray(jax.jit(lambda x: mark(x, 1, PYRAMID))(logits))
    green = mark.green(1, VOCAB)
    np.testing.assert_array_equal(found[..., ~green], logits[..., ~green])
    np.testing.assert_allclose(found[..., green], logits[..., green] + 3.0, rtol=1e-6)


def test_the_mark_is_found_with_its_key_only():
    plain, marked = draw(temperature=3.0), draw(MARK, temperature=3.0)

    def score(tokens, key=5):
        return detection_score(tokens, GreenList(key), PYRAMID, VOCAB)

    assert score(marked).mean() > 2.5 and score(marked).min() > score(plain).mean()
    assert np.abs(score(marked, 6)).mean() < 2


def test_the_score_of_codes_without_a_mark_is_standard_normal():
    tokens = np.random.default_rng(0).integers(0, 4096, (4000, PYRAMID.length))
    for watermark in (MARK, GreenList(5, fraction=0.25, first_level=1)):
        z = detection_score(tokens, watermark, PYRAMID, 4096)
        assert abs(z.mean()) < 0.06 and abs(z.std() - 1) < 0.05
        assert 0.02 < (z > 1.645).mean() < 0.08
        assert false_positive_rate(1.645) == pytest.approx(0.05, abs=1e-4)


def test_repeated_codes_count_once_if_asked_for():
    # One code throughout: green or not, all of them.
    tokens = np.zeros((1, PYRAMID.length), int)
    greens = sum(MARK.green(k, VOCAB)[0] for k in range(3))
    z = detection_score(tokens, MARK, PYRAMID, VOCAB, distinct=True)
    assert z[0] == pytest.approx((greens - 1.5) / np.sqrt(3 / 4))


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="between 0 and 1, got 1"):
        GreenList(0, fraction=1.0)
    with pytest.raises(ValueError, match=r"must be \[N, 21\]"):
        detection_score(np.zeros((2, 5), int), MARK, PYRAMID, VOCAB)
    with pytest.raises(ValueError, match="starts at level 3"):
        detection_score(np.zeros((2, 21), int), GreenList(0, first_level=3), PYRAMID, VOCAB)


@pytest.mark.parametrize("variant", ["", "smallest", "d16"])
def test_the_config_builds(variant):
    config = load("family/green_list", variant)
    assert build.decoder(config).sampling.processors == (GreenList(20260),)
    build.check_config(config)
