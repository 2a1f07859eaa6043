import io
import json
import resource

import numpy as np
import pytest
from pictures import encode, make_folder
from PIL import Image

from var_jax.data import imagenet, make_source, reading, shards
from var_jax.data.decode import ORIENTATION, decode
from var_jax.data.image_writer import MAX_SHARDS, Resize, shard_jobs


def prepare(root, **options):
    return imagenet.prepare(root / "out", root / "train", report=lambda line: None, **options)


def test_many_classes_share_hundreds_of_shards(tmp_path):
    jobs = shard_jobs([lambda n=n: iter([(b"", n, "")]) for n in range(1000)])
    assert len(jobs) == MAX_SHARDS <= 256
    assert [label for _, read in jobs for _, label, _ in read()] == list(range(1000))
    sizes = [len(list(read())) for _, read in jobs]
    assert max(sizes) - min(sizes) == 1
    make_folder(tmp_path / "train", {f"{n:03d}": 1 for n in range(MAX_SHARDS + 20)})
    table = prepare(tmp_path)["train"]
    assert len(table["shards"]) == MAX_SHARDS
    source = make_source("array_record", "train", path=tmp_path / "out")
    assert [r["label"] for r in source.__getitems__(range(len(source)))] == list(range(276))


def test_the_limit_of_open_files_is_raised(monkeypatch):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 512), hard))
        shards.allow_open_files(600, "the set")
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= 664
        shards.allow_open_files(1, "the set")
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= 664
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    monkeypatch.setattr(shards.resource, "getrlimit", lambda kind: (256, 1024))
    with pytest.raises(ValueError, match="the set has 1000 shards, but .* only 1024 files"):
        shards.allow_open_files(1000, "the set")


def test_pictures_that_cannot_be_read_are_left_out_and_said(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(reading.time, "sleep", lambda seconds: None)
    make_folder(tmp_path / "train", {"ant": 8, "bee": 4})
    original = open
    broken = {"3.jpg"}

    def unreliable(path, *arguments, **options):
        if str(path).rsplit("/", 1)[-1] in broken and "/train/ant" in str(path):
            raise OSError(5, "Input/output error", str(path))
        return original(path, *arguments, **options)

    monkeypatch.setattr("builtins.open", unreliable)
    with caplog.at_level("WARNING"):
        table = prepare(tmp_path)["train"]
    assert table["skipped"] == ["ant/3.jpg"] and "ant/3.jpg is left out: OSError" in caplog.text
    assert [s["records"] for s in table["shards"]] == [7, 4]
    broken |= {f"{i}.jpg" for i in range(8)}
    with pytest.raises(reading.BrokenData, match=r"7 of 12 pictures cannot be read, the last"):
        imagenet.prepare(tmp_path / "out2", tmp_path / "train", report=len)
    # Once the disk is well again, what was left out is read again.
    broken.clear()
    imagenet.prepare(tmp_path / "out2", tmp_path / "train", report=len)
    assert len(make_source("array_record", "train", path=tmp_path / "out2")) == 12


def test_resizing_keeps_what_a_picture_is(caplog):
    resize = Resize(16)
    ramp = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)
    deep = decode(resize(encode(ramp), "deep.png"), "L")
    assert deep.size == (16, 16) and abs(np.asarray(deep).mean() - 127.5) < 2

    clear = np.zeros((64, 64, 4), np.uint8)
    clear[:, :32] = 255
    small = decode(resize(encode(clear), "clear.png"), "L", background=200)
    np.testing.assert_array_equal(np.asarray(small)[:, [0, 15]], [[255, 200]] * 16)

    out = io.BytesIO()
    tags = Image.Exif()
    tags[ORIENTATION] = 6
    Image.fromarray(np.zeros((64, 32, 3), np.uint8)).save(out, "JPEG", exif=tags)
    turned = resize(out.getvalue(), "turned.jpg")
    assert decode(turned, "RGB").size == (16, 32)
    assert decode(turned, "RGB", orient=True).size == (32, 16)

    with caplog.at_level("WARNING"):
        assert resize(b"no picture", "ant/bad.jpg") == b"no picture"
    assert "ant/bad.jpg is kept as it is" in caplog.text


def test_an_output_is_of_one_data_set(tmp_path, monkeypatch):
    make_folder(tmp_path / "train", {"ant": 2, "bee": 2})
    original = shards.write_shard

    def write(path, records, compress):
        if "00001-of" in str(path):
            raise KeyboardInterrupt
        return original(path, records, compress)

    monkeypatch.setattr(shards, "write_shard", write)
    with pytest.raises(KeyboardInterrupt):
        prepare(tmp_path)
    monkeypatch.setattr(shards, "write_shard", original)
    (tmp_path / "train" / "bee" / "new.jpg").write_bytes(b"x")
    with pytest.raises(ValueError, match="begun with other settings or another data set"):
        prepare(tmp_path)
    (tmp_path / "train" / "bee" / "new.jpg").unlink()
    # A shard that was copied halfway beside its entry is written again.
    shard = tmp_path / "out" / "train" / shards.shard_name("train", 0, 2)
    shard.write_bytes(shard.read_bytes()[:100])
    prepare(tmp_path)
    assert len(make_source("array_record", "train", path=tmp_path / "out")) == 4


@pytest.mark.parametrize(
    "text", ["", "{", '{"kind": "images"', "[]", '{"kind": "images"}', "NO LABELS"]
)
def test_a_damaged_table_of_contents(tmp_path, text):
    make_folder(tmp_path / "train", {"ant": 1})
    prepare(tmp_path)
    path = tmp_path / "out" / "train" / shards.METADATA
    if text == "NO LABELS":
        text = path.read_text().replace('"labels"', '"label"')
    path.write_text(text)
    with pytest.raises(ValueError, match=r"damaged|has no (shards|labels)|holds None"):
        make_source("array_record", "train", path=tmp_path / "out")


def test_places_that_cannot_be_meant(tmp_path):
    make_folder(tmp_path / "train", {"ant": 1, "bee": 1})
    with pytest.raises(ValueError, match="The output .* lies in the input"):
        imagenet.prepare(tmp_path / "train" / "out", tmp_path / "train")
    with pytest.raises(ValueError, match="--train and --val are the same"):
        imagenet.prepare(tmp_path / "out", tmp_path / "train", tmp_path / "train" / ".")
    (tmp_path / "link").symlink_to(tmp_path / "train")
    with pytest.raises(ValueError, match="--train and --val are the same"):
        imagenet.prepare(tmp_path / "out", tmp_path / "train", tmp_path / "link")
    assert not (tmp_path / "out").exists()


def test_a_part_of_imagenet_is_said(tmp_path, caplog):
    make_folder(tmp_path / "train", {"n01440764": 1, "n02099601": 1})
    with caplog.at_level("WARNING"):
        table = prepare(tmp_path)["train"]
    assert "has 2 of the 1000 classes of ImageNet-1k" in caplog.text
    assert json.loads(json.dumps(table))["class_names"][1] == "n02099601 golden retriever"
