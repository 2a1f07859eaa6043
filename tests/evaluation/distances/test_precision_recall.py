import pathlib

import jax
import numpy as np
import pytest

from var_jax.evaluation.distances.precision_recall import manifold_scores

OUTPUTS = pathlib.Path(__file__).parents[2] / "goldens" / "metrics" / "outputs.npz"


@pytest.fixture(scope="module")
def outputs():
    with np.load(OUTPUTS) as values:
        return dict(values)


@pytest.mark.parametrize("block", [128, 4096])
def test_golden_precision_and_recall(outputs, block):
    scores = manifold_scores(outputs["features_real"], outputs["features_fake"], block=block)
    np.testing.assert_allclose(scores.precision, outputs["prc_precision"], rtol=1e-6)
    np.testing.assert_allclose(scores.recall, outputs["prc_recall"], rtol=1e-6)


def test_agrees_with_the_definitions():
    rng = np.random.default_rng(0)
    real = rng.normal(size=(53, 3)).astype(np.float32)
    fake = (0.7 * rng.normal(size=(41, 3)) + 0.3).astype(np.float32)

    def distances(a, b):
        return np.linalg.norm(a[:, None].astype(np.float64) - b[None], axis=-1)

    def radii(a, k):
        return np.sort(distances(a, a), 1)[:, k]

    between = distances(real, fake)
    ball = radii(real, 5)
    scores = manifold_scores(real, fake, k=2, density_k=5, block=16)
    assert scores.precision == np.mean((between <= radii(real, 2)[:, None]).any(0))
    assert scores.recall == np.mean((between <= radii(fake, 2)[None]).any(1))
    np.testing.assert_allclose(scores.density, (between <= ball[:, None]).sum() / 5 / 41)
    assert scores.coverage == np.mean(between.min(1) <= ball)


def test_one_device_equals_all(outputs):
    real, fake = outputs["features_real"][:90], outputs["features_fake"][:70]
    one = manifold_scores(real, fake, block=64, devices=jax.local_devices()[:1])
    assert manifold_scores(real, fake, block=64) == one


def test_too_few_samples():
    with pytest.raises(ValueError, match="5 neighbours need more than 5"):
        manifold_scores(np.zeros((5, 2), np.float32), np.zeros((9, 2), np.float32))
