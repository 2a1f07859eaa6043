"""Random folder trees and archives: the right pictures with the right labels, or a sentence.

VAR_JAX_FUZZ=5000 python -m pytest tests/data/test_fuzz_inputs.py    # so many inputs of each kind
"""

import io
import os
import shutil
import tarfile
import zipfile

import numpy as np
import pytest
from pictures import encode

from var_jax.data import (
    ImageTransform,
    Pipeline,
    UnreadableImage,
    imagenet,
    make_source,
    make_transform,
)
from var_jax.data.archives import read_archive, read_member
from var_jax.data.class_folders import is_hidden, is_picture
from var_jax.data.reading import BrokenData

COUNT = int(os.environ.get("VAR_JAX_FUZZ", "40"))
CLASSES = ["ant", "bee", "cow", "caf\u00e9", "Ant", "10", "2", "train", "val"]
HIDDEN = [".ipynb_checkpoints", "@eaDir", "__MACOSX", ".Trash-1", "lost+found"]
NAMES = ["0.jpg", "1.JPEG", "2.png", "3.TIF", "._0.jpg", "Thumbs.db", "notes.txt", "x", "4.webp"]
NAMES += ["b\udce9.jpg"]  # A byte that is not UTF-8.


def rng_of(kind, number):
    return np.random.Generator(np.random.Philox(key=np.array([kind, number], np.uint64)))


def picture(value):
    return encode(np.full((9, 9, 3), value, np.uint8))


def is_sentence(error):
    text = str(error)
    assert len(text) > 20 and "object at 0x" not in text and "Traceback" not in text, text
    return text


def grow(rng, root, files, depth=0):
    """Makes a random tree; `files` gets what it should show: path -> (value, whole)."""
    os.makedirs(root, exist_ok=True)
    for name in rng.choice(NAMES, rng.integers(0, 5), replace=False):
        value = int(rng.integers(0, 255))
        data = picture(value)
        whole = rng.random() > 0.1
        if not whole:
            data = data[: rng.integers(0, len(data) - 12)]
        with open(os.path.join(root, name), "wb") as file:
            file.write(data)
        files[os.path.join(root, name)] = value, whole
    if depth < 3:
        for name in rng.choice(CLASSES + HIDDEN, rng.integers(0, 4), replace=False):
            grow(rng, os.path.join(root, name), files, depth + 1)
    if rng.random() < 0.1:
        os.symlink(rng.choice([".", "..", "nowhere", root]), os.path.join(root, "link"))


def visible(root, path):
    parts = os.path.relpath(path, root).split(os.sep)
    return not any(map(is_hidden, parts)) and is_picture(parts[-1])


@pytest.mark.parametrize("number", range(COUNT))
def test_folder_trees(number, tmp_path):
    rng = rng_of(1, number)
    files = {}
    root = str(tmp_path / "data")
    grow(rng, root, files)
    split = ("train", "val")[rng.integers(2)]
    try:
        source = make_source("folder", split, path=root)
    except (ValueError, FileNotFoundError) as error:
        is_sentence(error)
        return
    # The names tell the class: the folder directly below the one that holds the classes.
    base = os.path.commonpath([root] if source.root == root else [source.root])
    expected = [f for f in files if f.startswith(base + os.sep) and visible(base, f)]
    found = [source._path(i) for i in range(len(source))]
    if source.class_names == ("all",):
        assert all(os.path.dirname(path) == base for path in found)
    else:
        expected = [f for f in expected if os.path.dirname(f) != base]
        for path, label in zip(found, source.labels, strict=True):
            top = os.path.relpath(path, base).split(os.sep)[0]
            assert source.class_names[label] == top
    # Links only add other ways to the same files.
    real = {os.path.realpath(path) for path in found}
    assert {os.path.realpath(path) for path in expected} <= real
    assert all(source.name(i).encode() for i in range(len(source)))
    pipeline = Pipeline(source, make_transform(source, 8, False), 4, train=False)
    try:
        for batch in pipeline.batches():
            for image, index, right in zip(
                batch["image"], batch["index"], batch["mask"], strict=True
            ):
                if right:
                    assert (image == files[os.path.realpath(found[index])][0]).all()
    except BrokenData as error:
        is_sentence(error)
    broken = [i for i, path in enumerate(found) if not files[os.path.realpath(path)][1]]
    assert set(pipeline.skipped) <= set(broken)


def archive(rng):
    """The bytes of a random tar file, and what it holds."""
    files = {}
    out = io.BytesIO()
    form = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT][rng.integers(3)]
    with tarfile.open(fileobj=out, mode="w", format=form) as tar:
        for i in range(rng.integers(1, 6)):
            name = f"{'d' * int(rng.integers(1, 90))}{i}.jpg" if rng.random() < 0.5 else f"{i}.jpg"
            data = rng.bytes(int(rng.integers(0, 3000)))
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
            files[name] = data
    return bytearray(out.getvalue()), files


def end_mark(files, data):
    """Where the padding begins: cutting or changing what follows loses nothing."""
    with tarfile.open(fileobj=io.BytesIO(bytes(data))) as tar:
        last = tar.getmembers()[-1]
    return last.offset_data + -(-last.size // 512) * 512


@pytest.mark.parametrize("number", range(COUNT))
def test_tar_bytes(number, tmp_path):
    rng = rng_of(2, number)
    data, files = archive(rng)
    end = end_mark(files, data)
    kind = rng.integers(5)
    damaged_names = False
    if kind == 0:
        data = data[: rng.integers(0, len(data))]
    elif kind == 1:  # Bits of headers and of contents: only the headers are protected.
        place = int(rng.integers(0, end))
        data[place] ^= 1 << int(rng.integers(8))
        damaged_names = True
    elif kind == 2:
        place = int(rng.integers(0, end // 512)) * 512
        del data[place : place + 512 * int(rng.integers(1, 4))]
        damaged_names = True
    elif kind == 3:
        place = int(rng.integers(0, end))
        data[place : place + 700] = bytes(700)
        damaged_names = True
    else:
        data += rng.bytes(int(rng.integers(1, 2000)))
    path = tmp_path / "x.tar"
    path.write_bytes(data)
    try:
        found = read_archive(path).members
        with open(path, "rb") as file:
            contents = {member.name: read_member(file, member) for member in found}
    except ValueError as error:
        assert "x.tar" in is_sentence(error)
        return
    if not damaged_names:
        assert contents == files
    # Members are lost without a word only where they were cut out, or nothing but zeros are left.
    rest = bytes(data[max((m.offset + m.size for m in found), default=0) :])
    assert len(contents) == len(files) or kind == 2 or not rest.strip(b"\0")


@pytest.mark.parametrize("number", range(COUNT))
def test_bytes_given_as_archives_or_pictures(number, tmp_path):
    rng = rng_of(3, number)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        for i in range(rng.integers(0, 4)):
            file.writestr(f"n0{i}/{i}.jpg", rng.bytes(int(rng.integers(0, 500))))
    data = bytearray(out.getvalue())
    kind = rng.integers(4)
    if kind == 0:
        data = data[: rng.integers(0, len(data) + 1)]
    elif kind == 1:
        data = bytearray(rng.bytes(int(rng.integers(0, 4000))))
    elif kind == 2:
        data, _ = archive(rng)
    path = tmp_path / "train.tar"
    path.write_bytes(data)
    with pytest.raises(ValueError) as caught:
        imagenet.prepare(tmp_path / "out", path)
    is_sentence(caught.value)
    assert not (tmp_path / "out").exists()
    shutil.rmtree(tmp_path)


@pytest.mark.parametrize("number", range(COUNT))
def test_picture_bytes(number):
    rng = rng_of(4, number)
    kinds = ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "TGA", "QOI", "JPEG2000"]
    kind = kinds[rng.integers(len(kinds))]
    data = bytearray(encode(rng.integers(0, 256, (9, 11, 3), dtype=np.uint8), kind))
    for _ in range(rng.integers(1, 6)):
        data[rng.integers(len(data))] = rng.integers(256)
    if rng.random() < 0.3:
        data = data[: rng.integers(0, len(data))]
    transform = ImageTransform(8, random_crop=True, exif_orientation=True)
    try:
        out = transform({"image": bytes(data)}, np.random.default_rng(0))["image"]
    except UnreadableImage as error:
        assert "object at 0x" not in str(error)
    else:
        assert out.shape == (8, 8, 3) and out.dtype == np.uint8
