import pickle

import numpy as np
import pytest
from pictures import encode, make_folder

from var_jax.data import Pipeline, make_source, make_transform
from var_jax.data.sources import ArraySource, split_per_class


def test_mnist5k_split_is_balanced_disjoint_and_fixed():
    train, val = make_source("mnist5k", "train"), make_source("mnist5k", "val")
    assert (len(train), len(val)) == (4500, 500)
    np.testing.assert_array_equal(np.bincount(train.labels), [450] * 10)
    np.testing.assert_array_equal(np.bincount(val.labels), [50] * 10)
    assert train.class_names == tuple("0123456789") and train.channels == 1
    assert train.images.dtype == np.uint8 and train.images.shape[1:] == (28, 28, 1)
    assert train.images.max() == 255 and train.images[:, 0].max() == 0  # black margin
    rows = {image.tobytes() for image in train.images}
    assert sum(image.tobytes() in rows for image in val.images) == 0
    np.testing.assert_array_equal(val.images, make_source("mnist5k", "val").images)


def test_split_per_class():
    labels = np.array([0, 1, 0, 1, 0, 1, 0])
    val = split_per_class(labels, 1, "val", "x")
    train = split_per_class(labels, 1, "train", "x")
    np.testing.assert_array_equal(np.sort(np.concatenate([train, val])), np.arange(7))
    assert sorted(labels[val]) == [0, 1]
    with pytest.raises(ValueError, match="Class 1 of x has only 3 records"):
        split_per_class(labels, 3, "val", "x")


def test_folder_ids_are_the_sorted_names(tmp_path):
    make_folder(tmp_path, {"n02": 2, "n01": 3, "n10": 1})
    (tmp_path / "n02" / "notes.txt").write_text("not a picture")
    (tmp_path / "n02" / "deeper").mkdir()
    (tmp_path / "n02" / "deeper" / "X.PNG").write_bytes(encode(np.zeros((9, 9), np.uint8)))
    (tmp_path / ".hidden").mkdir()
    source = make_source("folder", "train", path=tmp_path)
    assert source.class_names == ("n01", "n02", "n10")
    np.testing.assert_array_equal(source.labels, [0, 0, 0, 1, 1, 1, 2])
    assert source.name(0).endswith("n01/0.jpg") and source[0]["label"] == 0
    assert source[0]["image"] == (tmp_path / "n01" / "0.jpg").read_bytes()
    assert pickle.loads(pickle.dumps(source)).name(5) == source.name(5)
    batch = Pipeline(source, make_transform(source, 16, True), 7).batch(0)
    assert batch["image"].shape == (7, 16, 16, 3)
    np.testing.assert_array_equal(np.sort(batch["label"]), source.labels)


def test_folder_splits(tmp_path):
    make_folder(tmp_path / "train", {"cat": 2, "dog": 2, "owl": 2})
    make_folder(tmp_path / "val", {"dog": 1})
    val = make_source("folder", "val", path=tmp_path)
    assert val.class_names == ("cat", "dog", "owl") and val[0]["label"] == 1
    with pytest.raises(FileNotFoundError, match="no folder 'test'"):
        make_source("folder", "test", path=tmp_path)
    make_folder(tmp_path / "val", {"elk": 1})
    with pytest.raises(ValueError, match="class folder 'elk' .* none of the 3 classes"):
        make_source("folder", "val", path=tmp_path)


def test_folder_held_out(tmp_path):
    make_folder(tmp_path, {"cat": 4, "dog": 5})
    train = make_source("folder", "train", path=tmp_path, held_out=2)
    val = make_source("folder", "val", path=tmp_path, held_out=2)
    assert (len(train), len(val)) == (5, 4)
    names = {s.name(i) for s in (train, val) for i in range(len(s))}
    assert len(names) == 9
    with pytest.raises(ValueError, match="set held_out"):
        make_source("folder", "val", path=tmp_path)


def test_folder_without_classes_is_one_class(tmp_path):
    (tmp_path / "a.png").write_bytes(encode(np.zeros((9, 9), np.uint8)))
    source = make_source("folder", "train", path=tmp_path)
    assert source.class_names == ("all",) and len(source) == 1


def test_folder_with_its_own_class_table(tmp_path):
    make_folder(tmp_path, {"cat": 1, "dog": 1})
    source = make_source("folder", "train", path=tmp_path, class_names=["dog", "cat"])
    np.testing.assert_array_equal(source.labels, [1, 0])
    with pytest.raises(ValueError, match="no folder for class 'owl'"):
        make_source("folder", "train", path=tmp_path, class_names=["cat", "dog", "owl"])


def test_folder_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        make_source("folder", "train", path=tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no picture"):
        make_source("folder", "train", path=tmp_path)
    make_folder(tmp_path, {"cat": 1, "dog": 0})
    with pytest.raises(ValueError, match=r"class folder\(s\) dog of"):
        make_source("folder", "train", path=tmp_path)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros((2, 4, 4, 3), np.float32), [0, 1], "must be uint8"),
        (np.zeros((2, 4, 4), np.uint8), [0, 1], "must be uint8"),
        (np.zeros((2, 4, 4, 4), np.uint8), [0, 1], "1 or 3 channels"),
        (np.zeros((2, 4, 4, 3), np.uint8), [0], "one label for each"),
        (np.zeros((2, 4, 4, 3), np.uint8), [0, 2], r"Label 2 of record 1 .* outside 0\.\.1"),
        (np.zeros((2, 4, 4, 3), np.uint8), [0.0, 1.0], "must be integers"),
    ],
)
def test_array_source_errors(images, labels, message):
    with pytest.raises(ValueError, match=message):
        ArraySource(images, np.array(labels), ("a", "b"))


def test_synthetic():
    source = make_source("synthetic", "train", num_records=100, size=8, num_classes=7)
    assert len(source) == 100 and source.num_classes == 7
    batch = Pipeline(source, make_transform(source, 8, True), 100).batch(0)
    assert batch["image"].shape == (100, 8, 8, 3)
    np.testing.assert_array_equal(np.sort(batch["label"]), np.sort(np.arange(100) % 7))


@pytest.mark.parametrize("name", ["mnist5k", "emoji", "folder", "tfds", "array_record", "tokens"])
def test_unknown_options(name):
    with pytest.raises(ValueError, match=f"Wrong options for the data source '{name}'"):
        make_source(name, "train", heldout=3)


def test_unknown_names():
    with pytest.raises(ValueError, match="Unknown data source 'mnist'"):
        make_source("mnist", "train")
    with pytest.raises(ValueError, match="splits train and val, got 'test'"):
        make_source("mnist5k", "test")
