import numpy as np
import pytest

from var_jax.evaluation.generated.image_files import open_images
from var_jax.evaluation.generated.npz_images import ImageSpool, write_images


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (10, 6, 5, 3), np.uint8)


def test_write_images_streams(tmp_path, images):
    path = tmp_path / "a.npz"
    write_images(path, np.split(images, [3, 4]), 10, labels=np.arange(10)[::-1])
    with np.load(path) as arrays:
        np.testing.assert_array_equal(arrays["arr_0"], images)
        np.testing.assert_array_equal(arrays["labels"], np.arange(10)[::-1])
    np.testing.assert_array_equal(np.concatenate(list(open_images(path).batches(4))), images)
    with pytest.raises(ValueError, match="10 images came"):
        write_images(tmp_path / "b.npz", [images], 11)
    with pytest.raises(ValueError, match="do not go into"):
        write_images(tmp_path / "b.npz", [images[:5], images[5:, 1:]], 10)
    assert [file.name for file in tmp_path.iterdir()] == ["a.npz"]


def test_a_spool_leaves_the_npz_alone(tmp_path, images):
    path = tmp_path / "a.npz"
    with ImageSpool(path) as spool:
        spool.append(images[:3])
        spool.append(images[3:])
        spool.finish(labels=np.arange(10))
    np.testing.assert_array_equal(np.load(path)["arr_0"], images)
    with pytest.raises(RuntimeError, match="of the work"), ImageSpool(path) as spool:
        spool.append(images[:3])
        raise RuntimeError("of the work")
    np.testing.assert_array_equal(np.load(path)["arr_0"], images)
    assert [file.name for file in tmp_path.iterdir()] == ["a.npz"]
