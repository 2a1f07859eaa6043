import json

import numpy as np
import pytest

from var_jax.evaluation.distances.frechet import (
    InceptionScoreAccumulator,
    statistics,
)
from var_jax.evaluation.generated import adm
from var_jax.evaluation.generated.adm import Summary, compare, looks_class_sorted, read_reference
from var_jax.evaluation.inception.extractor import FeatureExtractor


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (16, 4, 4, 3))
    smooth = np.kron(coarse, np.ones((1, 8, 8, 1), np.int64))
    return np.clip(smooth + rng.integers(-20, 20, smooth.shape), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def extractor(inception_weights):
    return FeatureExtractor(inception_weights, batch_size=8)


@pytest.fixture(scope="module")
def summary(extractor, images):
    return adm.summarise([images], extractor)


def small_summary(seed, count=40, size=6, shift=0.0):
    rng = np.random.default_rng(seed)
    features = (rng.normal(size=(count, size)) + shift).astype(np.float32)
    inception = InceptionScoreAccumulator(5)
    inception.update(rng.normal(size=(count, 5)))
    found = statistics(features)
    return Summary(count, found, found, features, inception)


def test_every_score_comes_with_images_and_a_reference_of_images():
    scores = compare(small_summary(0, shift=1.0), small_summary(1, count=60))
    values = scores.as_dict()
    assert None not in values.values()
    assert (scores.num_samples, scores.num_reference) == (40, 60)
    assert scores.fid > 0 and scores.kid > 0
    json.dumps(values)


def test_equal_sets_have_distance_zero_and_cover_each_other():
    scores = compare(small_summary(0), small_summary(0))
    assert abs(scores.fid) < 1e-6 and abs(scores.sfid) < 1e-6
    assert scores.precision == scores.recall == scores.coverage == 1


def test_statistics_alone_give_only_distances():
    reference = Summary(0, small_summary(1).pool)
    scores = compare(small_summary(0), reference)
    assert scores.fid is not None and scores.inception_score is not None
    assert scores.sfid is None and scores.precision is None and scores.kid is None


def test_summary_is_that_of_the_features(summary, extractor, images):
    features = extractor(images)
    np.testing.assert_allclose(summary.features, features["2048"], rtol=1e-4, atol=1e-5)
    wide = summary.features.astype(np.float64)
    np.testing.assert_allclose(summary.pool.mean, wide.mean(0), rtol=1e-9)
    np.testing.assert_allclose(
        summary.pool.covariance, np.cov(wide, rowvar=False), rtol=1e-6, atol=1e-15
    )
    assert summary.spatial.mean.shape == (2023,)
    np.testing.assert_allclose(
        summary.spatial.mean, features["spatial"].mean(0, dtype=np.float64), rtol=1e-4, atol=1e-6
    )
    assert summary.count == 16


def test_reference_round_trip_with_and_without_images(summary, extractor, images, tmp_path):
    path = tmp_path / "reference.npz"
    adm.write_reference(path, summary, [images[:8]], 8)
    reference = read_reference(path, extractor)
    assert reference.count == 8  # images for precision and recall; statistics of all 16
    for name in ("pool", "spatial"):
        stored, own = getattr(reference, name), getattr(summary, name)
        np.testing.assert_array_equal(stored.mean, own.mean)
        np.testing.assert_array_equal(stored.covariance, own.covariance)
    np.testing.assert_allclose(reference.features, summary.features[:8], rtol=1e-4, atol=1e-5)

    np.savez(tmp_path / "m.npz", mu=summary.pool.mean, sigma=summary.pool.covariance)
    alone = read_reference(tmp_path / "m.npz", extractor)
    assert alone.features is None and alone.spatial is None and alone.count == 0
    # The images' own spatial statistics never stand beside stored pooled ones.
    np.savez(tmp_path / "i.npz", arr_0=images, mu=summary.pool.mean, sigma=summary.pool.covariance)
    assert read_reference(tmp_path / "i.npz", extractor).spatial is None


def test_wrong_references_are_refused(extractor, tmp_path):
    np.savez(tmp_path / "a.npz", other=np.zeros(3))
    with pytest.raises(ValueError, match="neither images .* nor statistics .* only other"):
        read_reference(tmp_path / "a.npz", extractor)
    np.savez(tmp_path / "b.npz", mu=np.zeros(10), sigma=np.zeros((10, 10)))
    with pytest.raises(ValueError, match=r"mu \[10\]"):
        read_reference(tmp_path / "b.npz", extractor)
    with pytest.raises(FileNotFoundError, match="no file"):
        read_reference(tmp_path / "none.npz", extractor)


def test_score_files_is_ready_for_json(summary, inception_path, images, tmp_path):
    order = np.argsort(np.random.default_rng(3).random(16))
    np.savez(tmp_path / "samples.npz", images[order], labels=np.arange(16))
    np.savez(tmp_path / "reference.npz", mu=summary.pool.mean, sigma=summary.pool.covariance)
    seen = []
    with pytest.warns(UserWarning, match="sorted by class"):
        result = adm.score_files(
            str(tmp_path / "samples.npz"),
            str(tmp_path / "reference.npz"),
            str(inception_path),
            batch_size=8,
            progress=lambda what, done, total: seen.append((what, done, total)),
        )
    json.dumps(result)
    assert abs(result["fid"]) < 1e-3  # the same images in another order
    np.testing.assert_allclose(result["inception_score"], summary.inception.score(), rtol=1e-5)
    assert seen == [("samples", 8, 16), ("samples", 16, 16)]
    assert len(result["inception_sha256"]) == 64 and not result["published_inception"]
    assert any("not the published Inception" in message for message in result["warnings"])


def test_errors_come_before_work(inception_path, images, tmp_path):
    np.savez(tmp_path / "a.npz", images)
    a = str(tmp_path / "a.npz")
    with pytest.raises(FileNotFoundError, match="no Inception weights"):
        adm.score_files(a, a, str(tmp_path / "none.pth"))
    with pytest.raises(ValueError, match="does not begin with deadbeef"):
        adm.score_files(a, a, str(inception_path), inception_sha256="deadbeef")
    np.savez(tmp_path / "f.npz", images.astype(np.float32))
    with pytest.raises(ValueError, match=r"outside \[-1, 1\]"):
        adm.score_files(str(tmp_path / "f.npz"), a, str(inception_path))


def test_sorted_samples_are_noticed_without_labels():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(10), 100)
    for order, expected in ((np.arange(1000), True), (rng.permutation(1000), False)):
        inception = InceptionScoreAccumulator(10, chunk_size=100)
        inception.update(8 * np.eye(10)[labels[order]])
        assert looks_class_sorted(inception) == expected
