import numpy as np
import pytest

from var_jax.evaluation.small_sets.classifier import train_classifier
from var_jax.pixels import to_float


@pytest.fixture(scope="module")
def bars():
    """Four classes of 16-pixel pictures: a bright bar in one of four orientations, and noise."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:16, :16] - 7.5
    distance = np.stack([rows, columns, rows - columns, rows + columns])
    labels = rng.integers(0, 4, 320)
    bars = 160 * (np.abs(distance[labels] + rng.uniform(-3, 3, (320, 1, 1))) < 2)
    noisy = bars + rng.normal(40, 20, bars.shape)
    return np.clip(noisy, 0, 255).astype(np.uint8)[..., None], labels


@pytest.fixture(scope="module")
def classifier(bars):
    images, labels = bars
    return train_classifier(
        images[:256], labels[:256], num_classes=4, steps=80, batch_size=32, width=8, shift=1
    )


def test_held_out_images_are_recognised(classifier, bars):
    images, labels = bars
    assert classifier.accuracy(images[256:], labels[256:]) >= 0.95
    assert classifier.accuracy(to_float(images[256:]), labels[256:]) >= 0.95
    assert classifier.accuracy(images[256:], (labels[256:] + 1) % 4) <= 0.05


def test_frechet_distance_ranks_sets(classifier, bars):
    images, labels = bars
    real = images[:128]
    near = classifier.frechet_distance(real, images[128:256])
    one_class = classifier.frechet_distance(real, images[128:256][labels[128:256] == 0])
    noise = np.random.default_rng(1).integers(0, 256, real.shape).astype(np.uint8)
    assert abs(classifier.frechet_distance(real, real)) < 1e-6
    assert near < 0.3 * one_class
    assert near < 0.3 * classifier.frechet_distance(real, noise)


def test_labels_are_checked(bars, unchecked):
    images, labels = bars
    with pytest.raises(ValueError, match="do not fit 3 classes"):
        train_classifier(images, labels, num_classes=3)
    with pytest.raises(ValueError, match="do not go with"):
        train_classifier(images, labels[1:], num_classes=4)
