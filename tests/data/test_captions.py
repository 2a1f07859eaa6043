import dataclasses
import json

import numpy as np
import pytest
from pictures import encode as png
from pictures import numbered_source
from test_token_cache import LENGTH, settings, tokens_of

from var_jax.data import Pipeline, captions, make_source
from var_jax.data.token_cache import TokenCache, TokenCacheSettings, TokenCacheWriter

TEXTS = (("a red bird", "鳥"), ("zéro",), (), ("three", "3", "drei"))


@pytest.mark.parametrize("text", ["", "a bird", "zéro", "赤い鳥", "🐦"])
def test_a_caption_is_its_bytes_whatever_the_script(text):
    row = captions.encode(text, 16)
    assert row.dtype == np.uint8 and row.shape == (16,)
    assert captions.decode(row) == text


def test_what_is_too_long_is_cut_between_two_characters():
    assert captions.decode(captions.encode("zéro", 2)) == "z"
    assert captions.decode(captions.encode("赤い鳥", 8)) == "赤い"


def test_white_space_and_accents_have_one_spelling():
    assert captions.clean("  a\tred \n bird", "x") == "a red bird"
    assert captions.clean("ze\u0301ro", "x") == "zéro"
    for bad in ("a\0b", "a\x1bb", "a\ud800"):
        with pytest.raises(ValueError, match=r"Line 3 holds the control character U\+"):
            captions.clean(bad, "Line 3")


def pipeline(source, batch_size=4, train=True, length=8):
    prepare = captions.OneCaption(None, length, drawn=train)
    return Pipeline(source, prepare, batch_size, seed=3, train=train)


def read(batch):
    return [captions.decode(row) for row in batch["caption"]]


@pytest.fixture
def source():
    return dataclasses.replace(numbered_source(4), captions=TEXTS)


def test_each_epoch_draws_one_of_an_images_captions_by_its_number(source):
    batches = [pipeline(source).batch(step) for step in range(40)]
    seen = {i: set() for i in range(4)}
    for batch in batches:
        assert batch["caption"].dtype == np.uint8 and "captions" not in batch
        for image, text in zip(batch["image"][:, 0, 0, 0], read(batch), strict=True):
            seen[int(image)].add(text)
    # Eight bytes of each; none is the empty caption.
    assert seen == {0: {"a red bi", "鳥"}, 1: {"zéro"}, 2: {""}, 3: {"three", "3", "drei"}}
    halves = [pipeline(source, 2).batch(step) for step in range(80)]
    assert sum(map(read, halves), []) == sum(map(read, batches), [])
    firsts = [texts[0] if texts else "" for texts in TEXTS]
    assert read(pipeline(source, train=False, length=16).batch(0)) == firsts
    assert "caption" not in pipeline(source, length=0).batch(0)


def write_cache(folder, source):
    made = settings(num_images=4, crops=1, captions=True)
    writer = TokenCacheWriter(folder, made, shard_size=3)
    prepare = captions.AllCaptions(lambda record, rng: record)
    for batch in Pipeline(source, prepare, 2, train=False).batches():
        index = batch["index"]
        writer.write(tokens_of(index), batch["label"], index, batch["captions"])
    writer.close()
    return TokenCache(folder)


def test_all_captions_survive_a_token_cache(tmp_path, source):
    cache = write_cache(tmp_path, source)
    assert cache.captioned and tuple(cache[i]["captions"] for i in range(4)) == TEXTS
    np.testing.assert_array_equal(cache[3]["tokens"], tokens_of([3])[0])
    for step in range(8):  # Images and tokens are shown with the same captions.
        a, b = (pipeline(records).batch(step) for records in (source, cache))
        np.testing.assert_array_equal(a["caption"], b["caption"])
        assert a["label"].tolist() == b["label"].tolist()
    assert "caption" not in pipeline(cache, length=0).batch(0)


def test_a_cache_without_captions_says_what_it_always_said(tmp_path):
    made = settings(num_images=1, crops=1)
    assert (
        "captions" not in made.to_json()
        and not TokenCacheSettings.from_json(made.to_json()).captions
    )
    writer = TokenCacheWriter(tmp_path, made)
    with pytest.raises(ValueError, match="Captions come with every sample"):
        writer.write(tokens_of([0]), [0], [0], np.zeros((1, 8, 8), np.uint8))
    writer.write(tokens_of([0]), [0], [0])
    writer.close()
    assert TokenCache(tmp_path)[0].keys() == {"tokens", "label"}
    with pytest.raises(ValueError, match="a record of"):
        TokenCache(tmp_path)._unpack(bytes(4 + 2 * LENGTH + 1))


PICTURE = png(np.zeros((4, 4), np.uint8))


def make_folder(root, names, texts=(), lines=None):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(PICTURE)
    for name, text in dict(texts).items():
        (root / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    if lines is not None:
        (root / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    return root


def folder(root, split="train", **options):
    return make_source("folder", split, path=root, captions=True, **options)


def test_a_folder_with_text_beside_its_pictures(tmp_path, caplog):
    texts = {"a.txt": "\ufeffa red bird\r\n\r\n  鳥 \n", "b.txt": "b"}
    source = folder(make_folder(tmp_path, ["a.png", "b.JPG"], texts))
    assert source.captioned and not source.left_out
    assert source[0]["captions"] == ("a red bird", "鳥") and source[1]["captions"] == ("b",)
    plain = make_source("folder", "train", path=tmp_path)
    assert not plain.captioned and plain[0].keys() == {"image", "label"}


def test_a_folder_with_a_list_and_pictures_held_out(tmp_path):
    names = [f"{c}/{i}.png" for c in "ab" for i in range(4)]
    lines = [{"file_name": name, "text": f"picture {name}"} for name in names]
    lines.append({"file_name": "./b/3.png", "text": ["another", ""]})
    make_folder(tmp_path, names, lines=lines)
    seen = {}
    for split in ("train", "val"):
        source = folder(tmp_path, split, held_out=1)
        seen |= {source.relative(i): source[i]["captions"] for i in range(len(source))}
    expected = {name: (f"picture {name}",) for name in names}
    assert seen == expected | {"b/3.png": ("picture b/3.png", "another")}


def test_a_folder_with_a_table(tmp_path):
    rows = 'text,file_name,id\n"a red, red bird",a.png,1\nzwei,b.png,2\n"and\nlines",b.png,3\n'
    source = folder(make_folder(tmp_path, ["a.png", "b.png"], {"metadata.csv": "\ufeff" + rows}))
    assert source[0]["captions"] == ("a red, red bird",) and not source.left_out
    assert source[1]["captions"] == ("zwei", "and lines")


@pytest.mark.parametrize(
    "texts, lines, message",
    [
        ({"a.txt": "a"}, None, "'b.png' of .* has no caption .1 of 2 pictures.; give each picture"),
        ({"a.txt": "a", "b.txt": " \n"}, None, "b.txt holds no caption"),
        ({"a.txt": "a", "b.txt": b"\xff"}, None, "b.txt is no UTF-8 text .byte 0."),
        (
            {"a.txt": "a", "b.txt": "b\nc\0"},
            None,
            r"Line 2 of .*b.txt holds .* U\+0000",
        ),
        ({}, [{"file_name": "a.png", "text": "a"}], "has no caption for 'b.png'"),
        ({}, [{"file_name": "c.png", "text": "a"}], "Line 1 of .* names 'c.png', which is no pict"),
        ({}, [{"file_name": "a.png"}], "Line 1 of .* needs a 'file_name' and a 'text'"),
        ({}, [[1]], "Line 1 of .* needs a 'file_name'"),
        ({"metadata.jsonl": "{"}, None, "Line 1 of .* is no JSON"),
        ({"metadata.jsonl": b"\xfe"}, None, "metadata.jsonl is no UTF-8 text"),
        ({"metadata.csv": ""}, [{"file_name": "a.png", "text": "a"}], "jsonl and .*; remove one"),
        ({"metadata.csv": "file_name,text\na.png,a\n"}, None, "has no caption for 'b.png'"),
        ({"metadata.csv": "file_name,words\na.png,a\n"}, None, "that says file_name, words"),
        ({"metadata.csv": "file_name,text\na.png,a,b\n"}, None, "Line 2 .* no more values"),
        (
            {"metadata.csv": 'file_name,text\na.png,"a\n'},
            None,
            "metadata.csv: unexpected end of data",
        ),
        ({"metadata.csv": "file_name,text\nc.png,a\n"}, None, "Line 2 .* names 'c.png'"),
    ],
)
def test_mistakes_in_a_folder_are_sentences(tmp_path, texts, lines, message):
    make_folder(tmp_path, ["a.png", "b.png"], texts, lines)
    with pytest.raises(ValueError, match=message):
        folder(tmp_path)
