"""Tar files of samples, as webdataset packs them."""

import json
import pickle

import numpy as np
import pytest
from pictures import encode
from test_archives import pack

from var_jax.data import Pipeline, captions, make_source, make_transform


def picture(value):
    return encode(np.full((8, 8), value, np.uint8))


def sample(number, **more):
    """The files of one sample: a picture that shows its number, and what else it has."""
    files = {".png": picture(number)} | {f".{name}": data for name, data in more.items()}
    return {
        f"{number:04d}{suffix}": data if isinstance(data, bytes) else data.encode()
        for suffix, data in files.items()
    }


def write(path, *samples):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pack({name: data for files in samples for name, data in files.items()}))


def numbers(source):
    size = len(source)
    batch = Pipeline(source, make_transform(source, 8, False), size, train=False).batch(0)
    return batch["image"][:, 0, 0, 0].tolist()


def test_samples_of_all_files_in_their_order(tmp_path, caplog):
    write(tmp_path / "b.tar", sample(5), sample(4, **{"seg.png": picture(99), "npy": "x"}))
    write(tmp_path / "a.tar", sample(7, json="{}"), {"0009.txt": b"no picture"})
    (tmp_path / "list.txt").write_text("no archive")
    source = make_source("tar", "train", path=tmp_path)
    assert len(source) == 3 and source.class_names == ("all",) and not source.captioned
    assert numbers(source) == [7, 5, 4]
    assert source.name(2) == f"{tmp_path}/b.tar: 0004.png"
    assert source[0].keys() == {"image", "label"}
    again = pickle.loads(pickle.dumps(source))
    assert again[1] == source[1]
    assert "3 samples; left out: " in caplog.text and ".png files (1)" in caplog.text


def test_classes_are_numbers_in_files(tmp_path):
    write(tmp_path / "x.tar", *(sample(i, cls=f"{i % 3}\n") for i in range(6)))
    source = make_source("tar", "train", path=tmp_path)
    assert source.class_names == ("0", "1", "2")
    assert [source[i]["label"] for i in range(6)] == [0, 1, 2, 0, 1, 2]
    named = make_source("tar", "train", path=tmp_path, class_names=("a", "b", "c", "d"))
    assert named.num_classes == 4
    with pytest.raises(ValueError, match=r"Label 2 .* outside 0..1"):
        make_source("tar", "train", path=tmp_path, class_names=("a", "b"))


def test_captions_of_texts_and_of_json(tmp_path):
    told = {"caption": "ein Vogel", "words": ["ze\u0301ro", ""]}
    for i in range(2):
        files = sample(i, txt=f"bird {i}\n\nred\n", json=json.dumps(told))
        write(tmp_path / f"{i}.tar", files)
    made = make_source("tar", "train", path=tmp_path, captions=True)
    assert made.captioned and made[1]["captions"] == ("bird 1", "red")
    batch = Pipeline(made, captions.OneCaption(None, 8, drawn=False), 2, train=False).batch(0)
    assert [captions.decode(row) for row in batch["caption"]] == ["bird 0", "bird 1"]
    for key, texts in (("caption", ("ein Vogel",)), ("words", ("zéro",))):
        assert make_source("tar", "train", path=tmp_path, captions=key)[0]["captions"] == texts


def test_splits_by_folder_by_name_and_held_out(tmp_path):
    def of(split, **options):
        return numbers(make_source("tar", split, **options))

    for i, split in enumerate(("training", "val")):
        write(tmp_path / "folders" / split / "x.tar", sample(i))
        write(tmp_path / "names" / f"set-{'train' if i == 0 else 'val'}-0.tar", sample(i))
    for path, options in (("folders", {}), ("names", {"files": "set-{split}-*.tar"})):
        options["path"] = tmp_path / path
        assert of("train", **options) == [0] and of("val", **options) == [1]
    write(tmp_path / "one" / "x.tar", *map(sample, range(5)))
    parts = [of(split, path=tmp_path / "one", held_out=2) for split in ("train", "val")]
    assert list(map(len, parts)) == [3, 2] and sorted(sum(parts, [])) == list(range(5))
    with pytest.raises(ValueError, match="has no folder 'val'; add one, say with files='{split}-"):
        of("val", path=tmp_path / "one")
    with pytest.raises(FileNotFoundError, match="has no file test-"):
        of("test", path=tmp_path / "names", files="{split}-*.tar")


def test_a_bucket(bucket):
    from etils import epath

    root = epath.Path(bucket) / "tar_samples"
    (root / "train").mkdir(parents=True)
    (root / "train" / "x.tar").write_bytes(pack(sample(3, txt="three")))
    source = make_source("tar", "train", path=root, captions=True)
    assert numbers(source) == [3] and source[0]["captions"] == ("three",)


@pytest.mark.parametrize(
    "samples, options, message",
    [
        ([{"a.txt": b"a"}], {}, "holds no picture .but .txt files .1.."),
        ([{"a.cls": b"1"}], {}, "holds no picture .but samples without a picture .1.."),
        ([{"a.png": b"", "a.jpg": b""}], {}, "a.png and a.jpg, two pictures of one sample"),
        ([sample(0, cls="1"), sample(1)], {}, "0001.png has no class .1 of 2 samples."),
        ([sample(0, cls="bird")], {}, "holds b'bird', which is no number of a class"),
        ([sample(0)], {"class_names": ("a", "b")}, "so class_names has nothing to name"),
        ([sample(0)], {"captions": True}, "0000.png of .* has no caption .1 of 1 samples.; pack a"),
        ([sample(0, txt="a")], {"captions": "text"}, "pack a file x.json beside"),
    ],
)
def test_mistakes_are_sentences(tmp_path, samples, options, message):
    write(tmp_path / "x.tar", *samples)
    with pytest.raises(ValueError, match=message):
        make_source("tar", "train", path=tmp_path, **options)


@pytest.mark.parametrize(
    "text, captions, message",
    [
        ({"txt": b"\xff"}, True, "The caption of .*0000.png is no UTF-8 text"),
        ({"txt": " \n"}, True, "The caption of .*0000.png holds no caption"),
        ({"json": "[1]"}, "text", "has no text, nor a list of texts, under 'text'"),
        ({"json": '{"text": [1]}'}, "text", "has no text, nor a list of texts, under 'text'"),
        ({"json": '{"text": ""}'}, "text", "is empty"),
        ({"json": "{"}, "text", "is no JSON"),
    ],
)
def test_a_broken_caption_is_an_unreadable_sample(tmp_path, text, captions, message):
    write(tmp_path / "x.tar", sample(0, **text))
    source = make_source("tar", "train", path=tmp_path, captions=captions)
    with pytest.raises(ValueError, match=message):
        source[0]
