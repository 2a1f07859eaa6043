import io
import json
import tarfile

import numpy as np
import pytest
from pictures import encode, make_folder
from PIL import Image

from var_jax.data import Pipeline, imagenet, make_source, make_transform, shards


def quiet(line):
    pass


def picture(value, size=20):
    return encode(np.full((size, size, 3), value, np.uint8), "JPEG")


def add(tar, name, data):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def make_tars(root, wnids=("n03", "n01", "n02"), count=3):
    """The layout of the official files, with few classes."""
    with tarfile.open(root / "train.tar", "w") as outer:
        for c, wnid in enumerate(wnids):
            inner = io.BytesIO()
            with tarfile.open(fileobj=inner, mode="w") as tar:
                for i in range(count):
                    add(tar, f"{wnid}_{i}.JPEG", picture(10 * c + i))
            add(outer, f"{wnid}.tar", inner.getvalue())
    with tarfile.open(root / "val.tar", "w") as tar:
        for i in (2, 0, 1):
            add(tar, f"ILSVRC2012_val_{i:08d}.JPEG", picture(i))
    (root / "labels.txt").write_text("n02\nn03\nn01\n")
    return root / "train.tar", root / "val.tar", root / "labels.txt"


def test_class_table():
    table = imagenet.class_table()
    wnids = [wnid for wnid, _ in table]
    assert len(table) == 1000 and wnids == sorted(set(wnids))
    assert table[0] == ("n01440764", "tench") and table[207] == ("n02099601", "golden retriever")
    assert table[999] == ("n15075141", "toilet tissue")
    assert imagenet.labels_of_wnids(wnids[::-1])["n02099601"] == 207
    with pytest.raises(ValueError, match="'n99999999' is no class of ImageNet-1k"):
        imagenet.labels_of_wnids([*wnids[1:], "n99999999"])


def test_validation_labels_come_with_tensorflow_datasets(tmp_path):
    _, val, _ = make_tars(tmp_path)
    with pytest.raises(ValueError, match="holds 3 images, but there are 50000 labels"):
        imagenet.val_pictures_from_tar(val, None, [w for w, _ in imagenet.class_table()])


def test_tar_files_to_shards_and_back(tmp_path):
    train, val, labels = make_tars(tmp_path)
    out = tmp_path / "out"
    lines = []
    imagenet.prepare(out, train, val, val_labels=labels, num_threads=2, report=lines.append)
    assert any(line.startswith("train: 3 of 3 shards, 9 images") for line in lines)
    source = make_source("array_record", "train", path=out)
    assert source.class_names == ("n01", "n02", "n03") and len(source) == 9
    records = source.__getitems__(range(9))
    assert [r["label"] for r in records] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert records[0]["image"] == picture(10) and source[8]["image"] == picture(2)
    assert source.name(0).startswith("n01_0.JPEG")
    held_out = make_source("array_record", "val", path=out)
    assert [held_out[i]["label"] for i in range(3)] == [1, 2, 0]
    assert [held_out[i]["image"] for i in range(3)] == [picture(i) for i in range(3)]
    pipeline = Pipeline(source, make_transform(source, 16, True), 9, seed=0)
    np.testing.assert_array_equal(np.sort(pipeline.batch(1)["label"]), np.repeat([0, 1, 2], 3))


def test_interrupted_preparation_goes_on(tmp_path, monkeypatch):
    train, _, _ = make_tars(tmp_path)
    out = tmp_path / "out"
    written = []
    original = shards.write_shard

    def write(path, records, compress):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(path)
        return original(path, records, compress)

    monkeypatch.setattr(shards, "write_shard", write)
    with pytest.raises(KeyboardInterrupt):
        imagenet.prepare(out, train, report=quiet)
    with pytest.raises(FileNotFoundError, match="unfinished"):
        make_source("array_record", "train", path=out)
    monkeypatch.setattr(shards, "write_shard", original)
    stamp = written[0].stat().mtime
    imagenet.prepare(out, train, report=quiet)
    assert written[0].stat().mtime == stamp
    assert len(make_source("array_record", "train", path=out)) == 9
    with pytest.raises(ValueError, match="begun with other settings"):
        imagenet.prepare(out, train, resize=imagenet.Resize(10), report=quiet)


def test_folders_and_resizing(tmp_path):
    make_folder(tmp_path / "train", {"n02": 2, "n01": 1})
    make_folder(tmp_path / "val", {"n02": 1})
    (tmp_path / "train" / "n01" / "bad.jpg").write_bytes(b"no picture")
    out = tmp_path / "out"
    imagenet.prepare(
        out,
        tmp_path / "train",
        tmp_path / "val",
        resize=imagenet.Resize(10),
        report=quiet,
    )
    source = make_source("array_record", "train", path=out)
    assert [source[i]["label"] for i in range(4)] == [0, 0, 1, 1]
    assert source[1]["image"] == b"no picture"
    assert Image.open(io.BytesIO(source[0]["image"])).size == (12, 10)
    assert make_source("array_record", "val", path=out)[0]["label"] == 1
    pipeline = Pipeline(source, make_transform(source, 8, True), 4)
    pipeline.batch(0)
    assert "bad.jpg" in pipeline.skipped[1]


def test_readable_names():
    assert imagenet.class_names_of(["n02099601", "x"]) == ["n02099601 golden retriever", "x"]


def test_labels_out_of_range_are_found_at_once(tmp_path):
    train, _, _ = make_tars(tmp_path)
    imagenet.prepare(tmp_path / "out", train, report=quiet)
    path = tmp_path / "out" / "train" / shards.METADATA
    table = json.loads(path.read_text())
    path.write_text(json.dumps({**table, "class_names": ["a", "b"]}))
    with pytest.raises(ValueError, match=r"Label 2 .* lies outside 0\.\.1"):
        make_source("array_record", "train", path=tmp_path / "out")


def test_wrong_inputs(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        imagenet.prepare(tmp_path / "out", tmp_path / "nowhere.tar")
    with tarfile.open(tmp_path / "empty.tar", "w"):
        pass
    with pytest.raises(ValueError, match="holds no class tars"):
        imagenet.prepare(tmp_path / "out", tmp_path / "empty.tar")
    train, val, labels = make_tars(tmp_path)
    labels.write_text("n01\nn02\nn07\n")
    with pytest.raises(ValueError, match="'n07' .* is no class of the training set"):
        imagenet.prepare(tmp_path / "out", train, val, val_labels=labels)
