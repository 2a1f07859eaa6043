import logging

import numpy as np
import pytest
from PIL import Image

from var_jax.evaluation.generated import image_files, npz_images
from var_jax.evaluation.generated.image_files import open_images


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (10, 6, 5, 3), np.uint8)


def read(path, size=4, **options):
    return np.concatenate(list(open_images(path, **options).batches(size)))


def save_pictures(folder, images, name="{}.png"):
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(images):
        Image.fromarray(image.squeeze()).save(folder / name.format(i))


def refused(path, *words, **options):
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        read(path, **options)
    message = str(error.value)
    assert "\n" not in message and message.endswith("."), message
    for word in words:
        assert word in message, message


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("name", ["arr_0", "images"])
def test_batches_are_the_file(tmp_path, images, save, name):
    save(tmp_path / "a.npz", labels=np.arange(10), **{name: images})
    file = open_images(tmp_path / "a.npz")
    assert (len(file), file.shape, file.dtype) == (10, images.shape, np.uint8)
    assert [len(batch) for batch in file.batches(4)] == [4, 4, 2]
    np.testing.assert_array_equal(read(tmp_path / "a.npz"), images)
    assert file.class_sorted


def test_an_npy_and_a_folder_are_the_same_images(tmp_path, images):
    np.save(tmp_path / "a.npy", images)
    save_pictures(tmp_path / "pictures", images)
    for name in ("a.npy", "pictures"):
        file = open_images(str(tmp_path / name))
        assert (file.shape, file.value_range, file.labels) == (images.shape, "uint8", None)
        np.testing.assert_array_equal(read(tmp_path / name), images)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_either_order_of_the_axes_in_the_file(tmp_path, images, order, suffix):
    path = tmp_path / f"a{suffix}"
    (np.save if suffix == ".npy" else np.savez)(path, np.asarray(images, order=order))
    np.testing.assert_array_equal(read(path), images)
    floats = np.asarray(images / 127.5 - 1, np.float32, order=order)
    (np.save if suffix == ".npy" else np.savez)(path, floats)
    np.testing.assert_array_equal(read(path), images)


def test_shuffled_or_absent_labels_are_not_sorted(tmp_path, images):
    np.savez(tmp_path / "a.npz", arr_0=images, labels=np.array([3, 1] * 5))
    assert not open_images(tmp_path / "a.npz").class_sorted
    np.savez(tmp_path / "b.npz", images)
    assert not open_images(tmp_path / "b.npz").class_sorted
    np.savez(tmp_path / "c.npz", arr_0=images, labels=np.zeros(10, np.int32))  # one class
    assert not open_images(tmp_path / "c.npz").class_sorted
    np.savez(tmp_path / "d.npz", images, np.zeros(3))  # no labels
    assert open_images(tmp_path / "d.npz").labels is None
    np.savez(tmp_path / "e.npz", arr_0=images, labels=np.arange(9))
    refused(tmp_path / "e.npz", "10 images and 9 labels")


@pytest.mark.parametrize("value_range", image_files.RANGES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, ">f4"])
def test_float_images_are_rounded_back(tmp_path, images, value_range, dtype):
    low, high = image_files.RANGES[value_range]
    floats = (images / 255 * (high - low) + low).astype(dtype)
    np.savez(tmp_path / "a.npz", floats)
    np.testing.assert_array_equal(read(tmp_path / "a.npz", value_range=value_range), images)
    # A note says it as well as the flag, which has the last word.
    note = npz_images.note_array({"value_range": value_range})
    np.savez(tmp_path / "b.npz", floats, note=note)
    np.testing.assert_array_equal(read(tmp_path / "b.npz"), images)


def test_one_pixel_never_decides_how_floats_are_read(tmp_path, images):
    """[0, 1] with an overshoot below 0 was once read as [-1, 1], and bright [-1, 1] as [0, 1]."""
    path, unit = tmp_path / "a.npy", (images / 255).astype(np.float32)
    undershot = unit.copy()
    undershot[0, 0, 0, 0] = -5e-4
    for floats in (unit, undershot, np.abs(unit * 2 - 1), unit * 255 / 400):
        np.save(path, floats)
        refused(path, "which may span", "--value_range")
    np.save(path, undershot)
    images[0, 0, 0, 0] = 0
    np.testing.assert_array_equal(read(path, value_range="0..1"), images)
    # What is plainly around 0 is told by itself, whatever one pixel holds.
    for pixel in (-1.0, 0.0, 1.0005):
        signed = unit * 2 - 1
        signed[0, 0, 0, 0] = pixel
        np.save(path, signed)
        assert open_images(path).value_range == "-1..1"


@pytest.mark.parametrize(
    "floats, value_range, words",
    [
        ((-1, 1), "0..1", ["outside 0..1", "--value_range"]),
        ((-1, 1), "0..255", ["outside 0..255"]),
        ((0, 200), "0..1", ["outside 0..1"]),
        ((0, 200), "-1..1", ["outside -1..1"]),
        ((0, 200), None, ["outside [-1, 1]", "--value_range=0..255"]),
        ((-3, 3), None, ["outside [-1, 1]"]),
        ((0, 300), None, ["outside [-1, 1]"]),
    ],
)
def test_a_stated_range_must_hold(tmp_path, floats, value_range, words):
    np.save(tmp_path / "a.npy", np.linspace(*floats, 48, dtype=np.float32).reshape(1, 4, 4, 3))
    refused(tmp_path / "a.npy", *words, value_range=value_range)


def test_grey_images_become_three_channels(tmp_path, images):
    np.savez(tmp_path / "a.npz", images[..., :1])
    np.testing.assert_array_equal(read(tmp_path / "a.npz"), images[..., [0, 0, 0]])
    save_pictures(tmp_path / "grey", images[..., :1])
    assert open_images(tmp_path / "grey").shape == (10, 6, 5, 1)
    np.testing.assert_array_equal(read(tmp_path / "grey"), images[..., [0, 0, 0]])
    # Coloured pictures among grey ones.
    Image.fromarray(images[3]).save(tmp_path / "grey" / "3.png")
    np.testing.assert_array_equal(read(tmp_path / "grey")[3], images[3])


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.full((2, 4, 4, 3), np.nan, np.float32), "not finite"),
        (np.full((2, 4, 4, 3), np.inf, np.float32), "not finite"),
        (np.zeros((2, 4, 4, 3), np.int64), "int64"),
        (np.zeros((2, 4, 4, 3), np.uint16), "uint16"),
        (np.zeros((2, 4, 4, 3), bool), "bool"),
        (np.zeros((2, 3, 4, 4), np.uint8), "not images"),
        (np.zeros((2, 3), np.uint8), "not images"),
        (np.zeros((0, 4, 4, 3), np.uint8), "not images"),
    ],
)
def test_wrong_arrays_are_refused(tmp_path, array, words):
    np.savez(tmp_path / "a.npz", array)
    np.save(tmp_path / "a.npy", array)
    refused(tmp_path / "a.npz", words)
    refused(tmp_path / "a.npy", words)


def test_names(tmp_path, images):
    refused(tmp_path / "none.npz", "no file")
    np.savez(tmp_path / "other.npz", pictures=images)
    refused(tmp_path / "other.npz", "no images under 'arr_0' or 'images'; it has pictures")
    np.savez(tmp_path / "two.npz", arr_0=images, images=images[:3])
    refused(tmp_path / "two.npz", "both 'arr_0' and 'images'")


def test_pictures_come_in_the_order_of_their_numbers_and_hidden_ones_do_not(tmp_path, images):
    save_pictures(tmp_path / "a", np.concatenate([images, images[:5]]), "sample_{}.png")
    save_pictures(tmp_path / "a" / ".ipynb_checkpoints", images)
    save_pictures(tmp_path / "a" / "@eaDir", images)
    save_pictures(tmp_path / "a", images[:1], ".hidden{}.png")
    np.testing.assert_array_equal(read(tmp_path / "a"), np.concatenate([images, images[:5]]))


def test_what_is_left_out_is_said(tmp_path, images, caplog):
    save_pictures(tmp_path / "a", images)
    (tmp_path / "a" / "notes.txt").write_text("x")
    with caplog.at_level(logging.WARNING):
        assert len(open_images(tmp_path / "a")) == 10
    assert "1 files of" in caplog.text and "notes.txt" in caplog.text


def test_class_folders_give_labels(tmp_path, images):
    for i in range(3):
        save_pictures(tmp_path / "a" / f"class{i}", images[i : i + 2])
    file = open_images(tmp_path / "a")
    np.testing.assert_array_equal(file.labels, [0, 0, 1, 1, 2, 2])
    assert file.class_sorted


def test_sixteen_bits_are_scaled_and_palettes_are_colours(tmp_path, images):
    ramp = np.linspace(0, 65535, 30).round().astype(np.uint16).reshape(6, 5)
    (tmp_path / "a").mkdir()
    Image.fromarray(ramp).save(tmp_path / "a" / "0.png")
    np.testing.assert_array_equal(read(tmp_path / "a")[0, ..., 0], np.rint(ramp / 257))
    palette = Image.fromarray(images[0]).quantize(4)
    palette.save(tmp_path / "a" / "1.png")
    np.testing.assert_array_equal(read(tmp_path / "a")[1], palette.convert("RGB"))


def test_folders_that_are_not_whole_or_not_plain_are_refused(tmp_path, images):
    folder = tmp_path / "a"
    folder.mkdir()
    refused(folder, "holds no picture")
    save_pictures(folder, images)
    cut = (folder / "3.png").read_bytes()
    (folder / "3.png").write_bytes(cut[: len(cut) // 2])
    refused(folder, "3.png cannot be read")
    (folder / "3.png").write_bytes(b"<html>")
    refused(folder, "3.png cannot be read: it is damaged, or no picture")
    Image.fromarray(images[3][:4]).save(folder / "3.png")
    refused(folder, "several sizes: 0.png is 6x5 px, 3.png 4x5")
    clear = np.concatenate([images[3], np.full((6, 5, 1), 9, np.uint8)], -1)
    Image.fromarray(clear).save(folder / "3.png")
    refused(folder, "3.png", "transparent")
    frames = [Image.fromarray(image) for image in images[:2]]
    frames[0].save(folder / "3.png", save_all=True, append_images=frames[1:])
    refused(folder, "3.png", "several frames")
    Image.fromarray(images[3]).save(folder / "3.png")
    np.testing.assert_array_equal(read(folder), images)
    np.save(folder / "more.npy", images)
    refused(folder, "more.npy", "a folder of pictures alone")


def test_the_hash_of_a_folder_sees_names_and_bytes(tmp_path, images):
    save_pictures(tmp_path / "a", images)
    first = image_files.sha256(tmp_path / "a")
    save_pictures(tmp_path / "b", images)
    assert image_files.sha256(tmp_path / "b") == first
    Image.fromarray(255 - images[0]).save(tmp_path / "b" / "0.png")
    assert image_files.sha256(tmp_path / "b") != first
