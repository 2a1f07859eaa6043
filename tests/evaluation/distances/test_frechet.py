import pathlib

import numpy as np
import pytest

from var_jax.evaluation.distances.frechet import (
    GaussianAccumulator,
    GaussianStatistics,
    InceptionScoreAccumulator,
    frechet_distance,
    inception_score,
    statistics,
)

OUTPUTS = pathlib.Path(__file__).parents[2] / "goldens" / "metrics" / "outputs.npz"


@pytest.fixture(scope="module")
def outputs():
    with np.load(OUTPUTS) as values:
        return dict(values)


def test_golden_frechet_distance(outputs):
    real, fake = statistics(outputs["features_real"]), statistics(outputs["features_fake"])
    np.testing.assert_allclose(frechet_distance(real, fake), outputs["fid"], rtol=1e-6)
    np.testing.assert_allclose(frechet_distance(fake, real), outputs["fid"], rtol=1e-6)


def test_golden_inception_score(outputs):
    mean, std = inception_score(outputs["logits"], splits=10)
    np.testing.assert_allclose(mean, outputs["inception_score_mean"], rtol=1e-9)
    np.testing.assert_allclose(std, outputs["inception_score_std"], rtol=1e-9)
    accumulator = InceptionScoreAccumulator(50, chunk_size=100)
    for part in np.array_split(outputs["logits"], 7):
        accumulator.update(part)
    np.testing.assert_allclose(accumulator.chunked(), (mean, std), rtol=1e-9)


def test_streamed_statistics_are_those_of_the_whole(outputs):
    features = outputs["features_real"] + 1000.0  # a mean that dwarfs the deviations
    accumulator = GaussianAccumulator(64)
    for rows in np.array_split(features, 11):
        accumulator.update(rows)
    found = accumulator.statistics()
    assert found.count == 600
    wide = features.astype(np.float64)
    np.testing.assert_allclose(found.mean, wide.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.covariance, np.cov(wide, rowvar=False), rtol=1e-9, atol=1e-12)


def test_frechet_distance_in_closed_form():
    """Diagonal covariances: the sum of (s_a - s_b)^2."""
    a = GaussianStatistics(0, np.array([1.0, 2, 3]), np.diag([4.0, 9, 0]))
    b = GaussianStatistics(0, np.array([1.0, 0, 3]), np.diag([1.0, 16, 25]))
    np.testing.assert_allclose(frechet_distance(a, b), 4 + 1 + 1 + 25, rtol=1e-12)


def test_frechet_distance_of_equal_and_singular_statistics_is_zero():
    rng = np.random.default_rng(0)
    few = statistics(rng.normal(size=(20, 200)).astype(np.float32))
    assert abs(frechet_distance(few, few)) < 1e-4


def test_frechet_distance_refuses_what_it_cannot_compare(outputs):
    a = statistics(outputs["features_real"])
    b = statistics(outputs["features_real"][:, :32])
    with pytest.raises(ValueError, match="64 and of 32"):
        frechet_distance(a, b)
    with pytest.raises(ValueError, match="not finite"):
        frechet_distance(a, a.replace(mean=a.mean * np.nan))
    with pytest.raises(ValueError, match="at least 2"):
        statistics(outputs["features_real"][:1])


def test_inception_score_does_not_depend_on_the_order():
    rng = np.random.default_rng(0)
    labels = np.sort(rng.integers(0, 10, 1000))
    logits = rng.normal(size=(1000, 10)) + 8 * np.eye(10)[labels]
    scores, chunked = [], []
    for order in (np.arange(1000), rng.permutation(1000)):
        accumulator = InceptionScoreAccumulator(10, chunk_size=100)
        accumulator.update(logits[order])
        scores.append(accumulator.score())
        chunked.append(accumulator.chunked()[0])
    np.testing.assert_allclose(scores[0], scores[1], rtol=1e-12)
    assert chunked[0] < 0.5 * chunked[1]  # what class-sorted files do to the published convention


def test_inception_score_of_certain_logits_is_the_number_of_classes():
    np.testing.assert_allclose(inception_score(np.eye(7) * 1e4)[0], 7, rtol=1e-9)
    np.testing.assert_allclose(inception_score(np.zeros((5, 7)))[0], 1, rtol=1e-9)
