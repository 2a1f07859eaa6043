import io
import zipfile

import numpy as np
import pytest

from var_jax.evaluation.generated.npz_images import NpzImages, write_images


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (10, 6, 5, 3), np.uint8)


def read(path, size=4):
    return np.concatenate(list(NpzImages(path).batches(size)))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_batches_are_the_file(tmp_path, images, save):
    save(tmp_path / "a.npz", arr_0=images, labels=np.arange(10))
    file = NpzImages(tmp_path / "a.npz")
    assert (len(file), file.shape, file.dtype) == (10, images.shape, np.uint8)
    assert [len(batch) for batch in file.batches(4)] == [4, 4, 2]
    np.testing.assert_array_equal(read(tmp_path / "a.npz"), images)
    assert file.class_sorted


def test_shuffled_or_absent_labels_are_not_sorted(tmp_path, images):
    np.savez(tmp_path / "a.npz", arr_0=images, labels=np.array([3, 1] * 5))
    assert not NpzImages(tmp_path / "a.npz").class_sorted
    np.savez(tmp_path / "b.npz", images)
    assert not NpzImages(tmp_path / "b.npz").class_sorted
    np.savez(tmp_path / "c.npz", arr_0=images, labels=np.zeros(10, np.int32))  # one class
    assert not NpzImages(tmp_path / "c.npz").class_sorted


@pytest.mark.parametrize(("scale", "shift"), [(127.5, -1.0), (255.0, 0.0)])
def test_float_images_are_rounded_back(tmp_path, images, scale, shift):
    np.savez(tmp_path / "a.npz", images.astype(np.float32) / scale + shift)
    np.testing.assert_array_equal(read(tmp_path / "a.npz"), images)


def test_grey_images_become_three_channels(tmp_path, images):
    np.savez(tmp_path / "a.npz", images[..., :1])
    np.testing.assert_array_equal(read(tmp_path / "a.npz"), images[..., [0, 0, 0]])


def test_write_images_streams(tmp_path, images):
    path = tmp_path / "a.npz"
    write_images(path, np.split(images, [3, 4]), 10, labels=np.arange(10)[::-1])
    with np.load(path) as arrays:
        np.testing.assert_array_equal(arrays["arr_0"], images)
        np.testing.assert_array_equal(arrays["labels"], np.arange(10)[::-1])
    np.testing.assert_array_equal(read(path), images)
    with pytest.raises(ValueError, match="10 images came"):
        write_images(tmp_path / "b.npz", [images], 11)
    with pytest.raises(ValueError, match="do not go into"):
        write_images(tmp_path / "b.npz", [images[:5], images[5:, 1:]], 10)
    assert not (tmp_path / "b.npz").exists()


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.full((2, 4, 4, 3), 200.0, np.float32), "200 to 200, outside"),
        (np.full((2, 4, 4, 3), np.nan, np.float32), "not finite"),
        (np.zeros((2, 4, 4, 3), np.int64), "int64"),
        (np.zeros((2, 3, 4, 4), np.uint8), "not images"),
        (np.zeros((2, 3), np.uint8), "not images"),
        (np.zeros((0, 4, 4, 3), np.uint8), "not images"),
        (np.asfortranarray(np.zeros((2, 4, 4, 3), np.uint8)), "C order"),
    ],
)
def test_wrong_arrays_are_refused(tmp_path, array, words):
    np.savez(tmp_path / "a.npz", array)
    with pytest.raises(ValueError, match=words) as error:
        NpzImages(tmp_path / "a.npz")
    assert "\n" not in str(error.value)


def test_wrong_files_are_refused(tmp_path, images):
    with pytest.raises(FileNotFoundError, match="no file"):
        NpzImages(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("not a zip")
    with pytest.raises(ValueError, match="not a complete npz"):
        NpzImages(tmp_path / "text.npz")
    np.savez(tmp_path / "other.npz", images=images)
    with pytest.raises(ValueError, match="has no array 'arr_0'; it has images"):
        NpzImages(tmp_path / "other.npz")
    short = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        short, {"descr": "|u1", "fortran_order": False, "shape": (4, 2, 2, 3)}
    )
    with zipfile.ZipFile(tmp_path / "short.npz", "w") as archive:
        archive.writestr("arr_0.npy", short.getvalue() + b"\0" * 13)
    with pytest.raises(ValueError, match="too early"):
        read(tmp_path / "short.npz")
