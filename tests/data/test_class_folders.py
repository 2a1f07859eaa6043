import os
import unicodedata

import numpy as np
import pytest
from etils import epath
from pictures import encode, make_folder

from var_jax.data import Pipeline, imagenet, make_source, make_transform
from var_jax.data import class_folders as class_folders_module
from var_jax.data.folder import FolderSource

CLASSES = {"ant": 2, "bee": 2}
PICTURE = encode(np.full((20, 24, 3), 9, np.uint8), "JPEG")


def put(path, data=PICTURE):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def files(source):
    return [source.relative(i) for i in range(len(source))]


@pytest.mark.parametrize(
    "hidden",
    [
        ".ipynb_checkpoints/0.jpg",
        ".Trash-1000/files/0.jpg",
        "@eaDir/0.jpg/SYNOPHOTO_THUMB_M.jpg",
        "__MACOSX/0.jpg",
        "lost+found/0.jpg",
        "$RECYCLE.BIN/0.jpg",
        "#recycle/0.jpg",
        "System Volume Information/0.jpg",
        "._0.jpg",
        ".DS_Store",
        "Thumbs.db",
        "desktop.ini",
    ],
)
def test_hidden_and_system_files_are_no_data(tmp_path, hidden):
    make_folder(tmp_path, CLASSES)
    put(tmp_path / hidden)
    put(tmp_path / "ant" / hidden)
    source = make_source("folder", "train", path=tmp_path)
    assert source.class_names == ("ant", "bee")
    assert files(source) == ["ant/0.jpg", "ant/1.jpg", "bee/0.jpg", "bee/1.jpg"]
    assert source.left_out == {"hidden or system files and folders": 2}


def test_every_picture_that_pillow_reads_is_taken_and_the_rest_is_said(tmp_path, caplog):
    make_folder(tmp_path, CLASSES)
    taken = ["jpeg", "JPEG", "tif", "tiff", "gif", "ppm", "pgm", "jfif", "avif", "jp2", "PNG"]
    taken += ["webp", "bmp", "TGA", "qoi"]
    for ending in taken:
        put(tmp_path / "ant" / f"x.{ending}")
    for name in ("a.txt", "b.txt", "c.heic", "noending", "d.jpg.zip"):
        put(tmp_path / "ant" / name)
    put(tmp_path / "loose.jpg")
    put(tmp_path / "README")
    with caplog.at_level("WARNING"):
        source = make_source("folder", "train", path=tmp_path)
    assert len(source) == 4 + len(taken)
    (said,) = [r.getMessage() for r in caplog.records]
    for part in (
        ".txt files (2)",
        ".heic files (1)",
        ".zip files (1)",
        "files without ending (2)",
        "pictures beside the class folders (1)",
    ):
        assert part in said, said


def test_links_are_followed_and_circles_are_not(tmp_path):
    make_folder(tmp_path / "train", CLASSES)
    make_folder(tmp_path / "elsewhere", {"more": 3, "cow": 1})
    (tmp_path / "train" / "ant" / "more").symlink_to(tmp_path / "elsewhere" / "more")
    (tmp_path / "train" / "ant" / "again").symlink_to(tmp_path / "elsewhere" / "more")
    (tmp_path / "train" / "bee" / "up").symlink_to(tmp_path / "train" / "bee")
    (tmp_path / "train" / "bee" / "2.jpg").symlink_to(tmp_path / "train" / "bee" / "0.jpg")
    (tmp_path / "train" / "bee" / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (tmp_path / "train" / "bee" / "loop.jpg").symlink_to("loop.jpg")
    (tmp_path / "train" / "cow").symlink_to(tmp_path / "elsewhere" / "cow")
    os.mkfifo(tmp_path / "train" / "bee" / "pipe.jpg")
    source = make_source("folder", "train", path=tmp_path)
    np.testing.assert_array_equal(np.bincount(source.labels), [5, 3, 1])
    assert source.left_out == {
        "links to folders that are in it already": 2,
        "broken links": 2,
        "pipes and devices": 1,
    }


def test_two_classes_that_are_one_folder(tmp_path):
    make_folder(tmp_path, CLASSES)
    (tmp_path / "cat").symlink_to(tmp_path / "ant")
    with pytest.raises(ValueError, match="'ant' and 'cat' .* are the same folder"):
        make_source("folder", "train", path=tmp_path)


def test_a_folder_that_cannot_be_listed_is_an_error(tmp_path, monkeypatch):
    make_folder(tmp_path, CLASSES)
    (tmp_path / "ant" / "deep").mkdir()
    original = os.scandir

    def scandir(path):
        if str(path).endswith("deep"):
            raise PermissionError(13, "Permission denied", str(path))
        return original(path)

    monkeypatch.setattr(class_folders_module.os, "scandir", scandir)
    with pytest.raises(ValueError, match=r"deep cannot be listed \(Permission denied\)"):
        make_source("folder", "train", path=tmp_path)


@pytest.mark.parametrize("train", ["train", "Train", "TRAINING", "training"])
@pytest.mark.parametrize("val", ["val", "Val", "validation", "valid"])
def test_splits_by_their_usual_names(tmp_path, train, val):
    make_folder(tmp_path / train, {**CLASSES, "cat": 1})
    make_folder(tmp_path / val, {"bee": 1})
    source = make_source("folder", "val", path=tmp_path)
    assert source.class_names == ("ant", "bee", "cat") and list(source.labels) == [1]
    assert len(make_source("folder", "train", path=tmp_path)) == 5


def test_two_folders_for_one_split(tmp_path):
    make_folder(tmp_path / "train", CLASSES)
    for name in ("val", "validation"):
        make_folder(tmp_path / name, CLASSES)
    with pytest.raises(ValueError, match="val and validation, which both could be the split 'val'"):
        make_source("folder", "val", path=tmp_path)


@pytest.mark.parametrize(
    "splits",
    [
        ("training", "validation"),
        ("Train", "Val"),
        ("train2017", "val2017"),
        ("images_train", "images_test"),
        ("train", "test", "extra"),
        ("imagenet_train", "imagenet_val"),
        ("train",),
    ],
)
def test_splits_are_no_classes(tmp_path, splits):
    for split in splits:
        make_folder(tmp_path / "data" / split, CLASSES)
    with pytest.raises(ValueError, match="holds splits and not classes"):
        FolderSource(tmp_path / "data")
    with pytest.raises(ValueError, match="holds splits and not classes"):
        imagenet.prepare(tmp_path / "out", tmp_path / "data")
    assert not (tmp_path / "out").exists()
    named = FolderSource(tmp_path / "data", class_names=sorted(splits))
    assert named.class_names == tuple(sorted(splits))


def test_a_path_one_level_too_high(tmp_path):
    make_folder(tmp_path / "data" / "myset", CLASSES)
    with pytest.raises(ValueError, match=r"one level lower; give .*myset"):
        make_source("folder", "train", path=tmp_path / "data")
    with pytest.raises(ValueError, match="one level lower"):
        imagenet.prepare(tmp_path / "out", tmp_path / "data")
    source = make_source("folder", "train", path=tmp_path / "data", class_names=["myset"])
    assert source.class_names == ("myset",)
    make_folder(tmp_path / "splits" / "set", {"train": 0})
    make_folder(tmp_path / "splits" / "set" / "train", CLASSES)
    with pytest.raises(ValueError, match=r"one level lower; give .*set"):
        make_source("folder", "train", path=tmp_path / "splits")


def test_classes_whose_names_hold_the_word_train(tmp_path):
    make_folder(tmp_path, {"bullet train": 1, "test tube": 1, "car": 1})
    source = make_source("folder", "train", path=tmp_path)
    assert source.class_names == ("bullet train", "car", "test tube")
    make_folder(tmp_path, {"train": 1})
    with pytest.raises(ValueError, match="'train' .* could be a split or a class"):
        make_source("folder", "train", path=tmp_path)
    names = ["car", "train", "bullet train", "test tube"]
    named = make_source("folder", "train", path=tmp_path, class_names=names)
    assert named.class_names == tuple(names) and len(named) == 4


def test_tiny_imagenet(tmp_path):
    for wnid in ("n02", "n01"):
        put(tmp_path / "train" / wnid / "images" / f"{wnid}_0.JPEG")
        put(tmp_path / "train" / wnid / f"{wnid}_boxes.txt", b"0")
    for i in (0, 1, 2, 10):
        put(tmp_path / "val" / "images" / f"val_{i}.JPEG")
    lines = [f"val_{i}.JPEG\tn0{i % 2 + 1}\t0\t32\t44\t62" for i in (10, 2, 1, 0)]
    labels = put(tmp_path / "val" / "val_annotations.txt", "\n".join(lines).encode())
    assert make_source("folder", "train", path=tmp_path).class_names == ("n01", "n02")
    with pytest.raises(ValueError, match="class folder 'images' .* none of the 2 classes"):
        make_source("folder", "val", path=tmp_path)
    val = make_source("folder", "val", path=tmp_path, val_labels=labels)
    assert {name: int(n) for name, n in zip(files(val), val.labels, strict=True)} == {
        "images/val_0.JPEG": 0,
        "images/val_1.JPEG": 1,
        "images/val_2.JPEG": 0,
        "images/val_10.JPEG": 0,
    }


def test_validation_pictures_without_classes_are_refused(tmp_path):
    make_folder(tmp_path / "train", {**CLASSES, "cow": 1})
    for i in range(3):
        put(tmp_path / "val" / f"{i}.JPEG")
    message = "val holds 3 pictures and no class folder, so nothing says which of the 3 classes"
    with pytest.raises(ValueError, match=message):
        make_source("folder", "val", path=tmp_path)
    with pytest.raises(ValueError, match=message):
        imagenet.prepare(tmp_path / "out", tmp_path / "train", tmp_path / "val")
    assert not (tmp_path / "out").exists()
    labels = put(tmp_path / "labels.txt", b"cow\nant\nbee\n")
    imagenet.prepare(
        tmp_path / "out", tmp_path / "train", tmp_path / "val", val_labels=labels, report=len
    )
    written = make_source("array_record", "val", path=tmp_path / "out")
    found = {written.name(i).split(" ")[0]: written[i]["label"] for i in range(3)}
    assert found == {"0.JPEG": 2, "1.JPEG": 0, "2.JPEG": 1}
    make_folder(tmp_path / "val", {"ant": 1})
    with pytest.raises(ValueError, match="has class folders .* and a file says"):
        make_source("folder", "val", path=tmp_path, val_labels=labels)


def test_training_pictures_without_classes_beside_validation_with_them(tmp_path):
    put(tmp_path / "train" / "0.jpg")
    make_folder(tmp_path / "val", CLASSES)
    with pytest.raises(ValueError, match="class folder 'ant' .* none of the 1 classes"):
        make_source("folder", "val", path=tmp_path)
    with pytest.raises(ValueError, match="class folder 'ant' .* none of the 1 classes"):
        imagenet.prepare(tmp_path / "out", tmp_path / "train", tmp_path / "val")


def test_most_pictures_beside_the_class_folders(tmp_path):
    make_folder(tmp_path, {"thumbs": 1})
    for i in range(5):
        put(tmp_path / f"{i}.jpg")
    with pytest.raises(ValueError, match="5 pictures lie beside the class folders .* and 1 in"):
        make_source("folder", "train", path=tmp_path)


def test_accents_are_one_name_however_they_are_written(tmp_path):
    composed, decomposed = (unicodedata.normalize(f, "café") for f in ("NFC", "NFD"))
    make_folder(tmp_path / "train", {"zoo": 1, composed: 1})
    make_folder(tmp_path / "val", {decomposed: 2})
    val = make_source("folder", "val", path=tmp_path)
    assert val.class_names == (composed, "zoo") and list(val.labels) == [0, 0]
    imagenet.prepare(tmp_path / "out", tmp_path / "train", tmp_path / "val", report=len)
    assert make_source("array_record", "val", path=tmp_path / "out")[1]["label"] == 0
    make_folder(tmp_path / "train", {decomposed: 1})
    with pytest.raises(ValueError, match="two folders that look like 'café'"):
        make_source("folder", "train", path=tmp_path)


def test_the_ids_do_not_hang_on_how_accents_are_written(tmp_path):
    # Decomposed, 'é' sorts before 'z', composed after it.
    for form in ("NFC", "NFD"):
        names = [unicodedata.normalize(form, name) for name in ("cafés", "cafz")]
        make_folder(tmp_path / form, {name: 1 for name in names})
    tables = [make_source("folder", "train", path=tmp_path / f).class_names for f in ("NFC", "NFD")]
    assert tables[0] == tables[1]


def test_a_class_in_other_letters(tmp_path):
    make_folder(tmp_path / "train", CLASSES)
    make_folder(tmp_path / "val", {"Ant": 1})
    with pytest.raises(ValueError, match=r"'Ant' .* none of the 2 classes \('ant' is\)"):
        make_source("folder", "val", path=tmp_path)


def test_names_that_are_not_utf8(tmp_path):
    make_folder(tmp_path / "train", CLASSES)
    name = os.path.join(os.fsencode(tmp_path), b"train", b"ant", b"caf\xe9.jpg")
    with open(name, "wb") as file:
        file.write(PICTURE)
    imagenet.prepare(tmp_path / "out", tmp_path / "train", report=len)
    written = make_source("array_record", "train", path=tmp_path / "out")
    names = [written.name(i) for i in range(len(written))]
    assert any(r"caf\xe9.jpg" in name for name in names)
    source = make_source("folder", "train", path=tmp_path)
    assert source[2]["image"] == PICTURE and source.name(2).encode()
    os.mkdir(os.path.join(os.fsencode(tmp_path), b"train", b"b\xe4r"))
    with pytest.raises(ValueError, match=r"'b\\\\xe4r' .* not UTF-8"):
        imagenet.prepare(tmp_path / "out2", tmp_path / "train")
    assert not (tmp_path / "out2").exists()


def test_every_class_has_a_picture(tmp_path):
    make_folder(tmp_path, {**CLASSES, "cow": 0})
    put(tmp_path / "cow" / "a.txt")
    with pytest.raises(ValueError, match=r"cow of .* no picture .*; it has \.txt files \(1\)"):
        make_source("folder", "train", path=tmp_path)


def test_fewer_classes_to_validate_are_said(tmp_path, caplog):
    make_folder(tmp_path / "train", CLASSES)
    make_folder(tmp_path / "val", {"bee": 1})
    with caplog.at_level("WARNING"):
        make_source("folder", "val", path=tmp_path)
    assert "folders for 1 of the 2 classes" in caplog.text


def test_wrong_endings_and_empty_files_do_not_end_a_run(tmp_path):
    make_folder(tmp_path, {"ant": 6, "bee": 6})
    put(tmp_path / "ant" / "png.jpg", encode(np.zeros((20, 20, 3), np.uint8), "PNG"))
    put(tmp_path / "bee" / "empty.jpg", b"")
    put(tmp_path / "bee" / "page.jpg", b"<html>404</html>")
    source = make_source("folder", "train", path=tmp_path)
    pipeline = Pipeline(source, make_transform(source, 16, True), 15)
    assert pipeline.batch(0)["image"].shape == (15, 16, 16, 3)
    assert sorted(os.path.basename(r).split(":")[0] for r in pipeline.skipped.values()) == [
        "empty.jpg",
        "page.jpg",
    ]


def test_folders_in_a_bucket_are_read_as_folders_on_a_disk(tmp_path, bucket):
    local, remote = tmp_path / "set", epath.Path(bucket) / "class folders"
    for path in (
        "Train/ant/0.jpg",
        "Train/ant/deep/1.JPEG",
        "Train/ant/.ipynb_checkpoints/0.jpg",
        "Train/ant/a.txt",
        "Train/@eaDir/0.jpg",
        "Train/bee/0.tif",
        "Train/loose.jpg",
        "Train/notes",
        "Validation/bee/0.jpg",
    ):
        put(local / path)
        (remote / path).parent.mkdir(parents=True, exist_ok=True)
        (remote / path).write_bytes(PICTURE)
    for split in ("train", "val"):
        here, there = (make_source("folder", split, path=path) for path in (local, remote))
        assert files(here) == files(there) and here.class_names == there.class_names
        np.testing.assert_array_equal(here.labels, there.labels)
        assert there[0]["image"] == PICTURE
    train = make_source("folder", "train", path=remote)
    assert train.left_out[".txt files"] == 1
    assert train.left_out["pictures beside the class folders"] == 1
    with pytest.raises(ValueError, match="holds splits and not classes"):
        FolderSource(remote)
