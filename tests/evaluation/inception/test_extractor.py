import jax
import numpy as np
import pytest

from var_jax.evaluation.inception.extractor import FeatureExtractor


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (11, 24, 24, 3), np.uint8)


def test_features_do_not_depend_on_batches_or_devices(inception_weights, images):
    names = ("64", "192")  # the first layers are enough here, and compile fast
    many = FeatureExtractor(inception_weights, names, batch_size=4)
    one = FeatureExtractor(inception_weights, names, batch_size=3, devices=jax.devices()[:1])
    assert many.batch_size % jax.local_device_count() == 0
    whole = one(images)
    assert {name: value.shape for name, value in whole.items()} == {
        "64": (11, 64),
        "192": (11, 192),
    }
    parts = list(many.stream(np.split(images, [1, 2, 9])))
    assert sum(len(part["64"]) for part in parts) == 11
    for name in names:
        joined = np.concatenate([part[name] for part in parts])
        np.testing.assert_allclose(joined, whole[name], rtol=1e-4, atol=1e-5)
    assert many(images[:0])["64"].shape == (0, 64)


def test_default_batch_is_small_on_a_cpu(inception_weights):
    extractor = FeatureExtractor(inception_weights, ("64",), devices=jax.devices("cpu")[:1])
    assert extractor.batch_size == 8


def test_wrong_images_are_refused(inception_weights, images, unchecked):
    extractor = FeatureExtractor(inception_weights, ("64",))
    for wrong in (images.astype(np.float32), images[0], images[..., :1]):
        with pytest.raises(ValueError, match="uint8 images"):
            extractor(wrong)
