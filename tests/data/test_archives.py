import bz2
import gzip
import io
import lzma
import tarfile
import zipfile

import numpy as np
import pytest
from pictures import encode

from var_jax.data import archives, imagenet, make_source, reading
from var_jax.data.archives import read_archive, read_member

FILES = {"a.jpg": b"A" * 700, "b.jpg": b"B" * 1024, "c.jpg": b"C"}
JPEG = encode(np.zeros((20, 20, 3), np.uint8), "JPEG")


def pack(files, form=tarfile.USTAR_FORMAT, more=()):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        for info in more:
            tar.addfile(info)
    return out.getvalue()


def link(name, target, kind):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def contents(tmp_path, data):
    path = tmp_path / "x.tar"
    path.write_bytes(data)
    with open(path, "rb") as file:
        return {m.name: read_member(file, m) for m in read_archive(path).members}


def nested(classes=("n01", "n02", "n03"), count=3):
    """An archive of class archives, and where each of these begins."""
    inner = pack({f"{i}.JPEG": JPEG for i in range(count)})
    return pack({f"{wnid}.tar": inner for wnid in classes})


@pytest.mark.parametrize(
    "form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT], ids=str
)
def test_whole_archives(tmp_path, form):
    files = {**FILES, "d/" + "long" * 20 + ".jpg": b"D", "é.jpg": b"E"}
    assert contents(tmp_path, pack(files, form)) == files


def test_every_cut_is_noticed(tmp_path):
    data = pack(FILES)
    # Headers at 0, 1536 and 3072, the end mark at 4096; behind it there is only padding.
    for size in range(0, 4096, 128):
        with pytest.raises(ValueError, match=r"x\.tar"):
            contents(tmp_path, data[:size])
    for size in (4096 + 512, 4096 + 1024, len(data)):
        assert contents(tmp_path, data[:size]) == FILES


def test_cuts_name_the_file_and_the_place(tmp_path):
    data = pack(FILES)
    for size, message in (
        (0, "is an empty file"),
        (300, "no tar file, or damaged at its beginning"),
        (1000, "byte 0 of 1000, at or after a.jpg"),
        (1536, "byte 1536 of 1536, at or after a.jpg .there is no end mark"),
        (1600, "byte 1536 of 1600, at or after a.jpg"),
        (2000, r"byte 1536 of 2000, at or after b.jpg|byte 1536 of 2000, at or after a.jpg"),
    ):
        with pytest.raises(ValueError, match=message):
            contents(tmp_path, data[:size])


def test_damaged_headers_are_not_the_end(tmp_path):
    for place in (0, 1536, 3072):
        data = bytearray(pack(FILES))
        data[place + 3] ^= 255
        with pytest.raises(ValueError, match="damaged"):
            contents(tmp_path, bytes(data))


def test_archives_behind_an_archive_are_not_lost(tmp_path):
    data = pack(FILES)
    with pytest.raises(ValueError, match="goes on behind its end mark at byte 4096"):
        contents(tmp_path, data + pack({"d.jpg": b"D"}))


def test_space_that_was_set_aside_is_not_an_end(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "_MAX_PADDING", 20_000)
    data = pack(FILES)
    assert contents(tmp_path, data) == FILES
    with pytest.raises(ValueError, match="zeros or another archive"):
        contents(tmp_path, data[:3072] + bytes(50_000))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (gzip.compress(pack(FILES)), "is compressed with gzip and no tar file; decompress"),
        (gzip.compress(pack(FILES))[:50], "is compressed with gzip"),
        (bz2.compress(pack(FILES)), "is compressed with bzip2"),
        (lzma.compress(pack(FILES)), "is compressed with xz"),
        (b"<!DOCTYPE html><html>Sign in</html>", "is a web page and no tar file"),
        (b"\n\n  <html><body>404</body></html>" + bytes(600), "is a web page"),
        (b'{"error": "access denied"}', "is a message in JSON"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "pointer of Git LFS"),
        (JPEG, "is no tar file"),
        (bytes(range(256)) * 40, "is no tar file"),
    ],
    # gzip writes the time: a name made of the bytes would be another one in each process.
    ids=[
        "gzip",
        "gzip-cut",
        "bzip2",
        "xz",
        "html",
        "html-behind-space",
        "json",
        "git-lfs",
        "jpeg",
        "bytes",
    ],
)
def test_what_is_no_tar_file(tmp_path, data, message):
    with pytest.raises(ValueError, match=message):
        contents(tmp_path, data)
    with pytest.raises(ValueError, match=message):
        imagenet.prepare(tmp_path / "out", tmp_path / "x.tar")
    assert not (tmp_path / "out").exists()


def test_zip_files(tmp_path):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        file.writestr("a.jpg", b"A")
    with pytest.raises(ValueError, match="is a zip file and no tar file; unpack it"):
        contents(tmp_path, out.getvalue())


def test_links_are_the_files_that_they_name(tmp_path):
    more = [
        link("hard.jpg", "a.jpg", tarfile.LNKTYPE),
        link("d/soft.jpg", "../b.jpg", tarfile.SYMTYPE),
        link("d/twice.jpg", "soft.jpg", tarfile.SYMTYPE),
    ]
    found = contents(tmp_path, pack(FILES, more=more))
    assert found["hard.jpg"] == FILES["a.jpg"] and found["d/soft.jpg"] == FILES["b.jpg"]
    assert found["d/twice.jpg"] == FILES["b.jpg"] and len(found) == 6
    for target in ("nowhere.jpg", "loop.jpg", "/data/a.jpg"):
        with pytest.raises(ValueError, match=r"loop\.jpg of .* is a link to .* not in it"):
            contents(tmp_path, pack(FILES, more=[link("loop.jpg", target, tarfile.SYMTYPE)]))


def test_members_that_are_no_plain_files(tmp_path):
    for kind in (tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.GNUTYPE_SPARSE, b"M"):
        with pytest.raises(ValueError, match=r"odd\.jpg"):
            contents(tmp_path, pack(FILES, more=[link("odd.jpg", "", kind)]))


def test_paths_of_every_kind_and_hidden_files(tmp_path):
    files = {
        "./a.jpg": b"A",
        "/data/b.jpg": b"B",
        "../c.jpg": b"C",
        "d/._d.jpg": b"no",
        "__MACOSX/e.jpg": b"no",
        ".DS_Store": b"no",
    }
    found = contents(tmp_path, pack(files))
    assert sorted(found.values()) == [b"A", b"B", b"C"]


def test_a_name_that_comes_twice(tmp_path):
    with pytest.raises(ValueError, match="holds a.jpg twice"):
        contents(tmp_path, pack({"a.jpg": b"1", "./a.jpg": b"2"}))


@pytest.mark.parametrize("size", [b"77777777777", b"\xff" * 11, b"\x80" + b"\x7f" * 10])
def test_sizes_of_nonsense(tmp_path, size):
    data = bytearray(pack(FILES))
    header = data[1536:2048]
    header[124 : 124 + len(size)] = size
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    data[1536:2048] = header
    with pytest.raises(ValueError, match="damaged or cut off at byte 1536"):
        contents(tmp_path, bytes(data))


def test_class_archives_to_shards(tmp_path):
    path = tmp_path / "train.tar"
    path.write_bytes(nested())
    imagenet.prepare(tmp_path / "out", path, report=len)
    source = make_source("array_record", "train", path=tmp_path / "out")
    assert [source[i]["label"] for i in range(len(source))] == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_a_class_that_was_cut_does_not_go_on_into_the_next(tmp_path):
    # Packed after they had been cut: the outer archive is whole.
    whole = pack({f"{i}.JPEG": JPEG for i in range(3)})
    boundary = 512 + -(-len(JPEG) // 512) * 512
    for size in (boundary, boundary + 100, 2 * boundary - 1):
        data = pack({"n01.tar": whole[:size], "n02.tar": whole})
        path = tmp_path / f"{size}.tar"
        path.write_bytes(data)
        with pytest.raises(ValueError, match=rf"n01\.tar in .*{size}\.tar is damaged or cut off"):
            imagenet.prepare(tmp_path / f"out{size}", path, report=len)


@pytest.mark.parametrize("share", [0.3, 0.5, 0.78])
def test_a_training_archive_that_was_cut(tmp_path, share):
    data = nested()
    path = tmp_path / "train.tar"
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(ValueError, match=r"train\.tar is damaged or cut off"):
        imagenet.prepare(tmp_path / "out", path)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"n01.tar": b"", "n02.tar": b"x"}, "n01.tar in .* is an empty file"),
        ({"n01.tar.gz": b"x"}, "n01.tar.gz in .* is compressed"),
        ({"n01.tgz": b"x", "n02.tar": pack({"a.jpg": JPEG})}, "n01.tgz in .* is compressed"),
        ({"n01/a.JPEG": JPEG}, r"no class tars .*but \.jpeg files \(1\)"),
        ({"a/n01.tar": b"1", "b/n01.tar": b"2"}, "two tars of class n01"),
        ({"n01.tar": pack({"a.txt": b"x"})}, r"n01.tar in .* no picture .*\.txt files \(1\)"),
        ({"n01.tar": pack({})}, r"n01.tar in .* no picture"),
        ({"n01.tar": gzip.compress(pack(FILES))}, "n01.tar in .* is compressed with gzip"),
        ({"n01.tar": pack({"n01_1.tar": pack(FILES)})}, r"no picture .*\.tar files \(1\)"),
    ],
)
def test_odd_training_archives(tmp_path, files, message):
    path = tmp_path / "train.tar"
    path.write_bytes(pack(files))
    with pytest.raises(ValueError, match=message):
        imagenet.prepare(tmp_path / "out", path, report=len)


def test_what_a_mac_adds_is_no_class(tmp_path):
    inner = pack({"a.JPEG": JPEG, "._a.JPEG": b"x", "LICENSE": b"x"})
    path = tmp_path / "train.tar"
    path.write_bytes(pack({"t/n01.tar": inner, "t/._n01.tar": b"x", "t/.DS_Store": b"x"}))
    imagenet.prepare(tmp_path / "out", path, report=len)
    source = make_source("array_record", "train", path=tmp_path / "out")
    assert source.class_names == ("n01",) and len(source) == 1


def test_validation_archives(tmp_path):
    train = tmp_path / "train.tar"
    train.write_bytes(nested())
    val = tmp_path / "val.tar"
    pictures = {f"val/{i}.{kind}": JPEG for i, kind in enumerate(("JPEG", "png", "webp"))}
    val.write_bytes(pack(pictures))
    labels = tmp_path / "labels.csv"
    labels.write_text("ImageId,PredictionString\n2,n01 1 2\n0,n03 1 2\n1,n02 1 2\n")
    imagenet.prepare(tmp_path / "out", train, val, val_labels=labels, report=len)
    source = make_source("array_record", "val", path=tmp_path / "out")
    assert [source[i]["label"] for i in range(3)] == [2, 1, 0]
    with pytest.raises(ValueError, match="holds 3 images, but there are 50000 labels"):
        imagenet.prepare(tmp_path / "out2", train, val)
    val.write_bytes(pack(pictures)[: 2 * 1024])
    with pytest.raises(ValueError, match=r"val\.tar is damaged or cut off"):
        imagenet.prepare(tmp_path / "out3", train, val, val_labels=labels)
    val.write_bytes(pack({"a.txt": b"x"}))
    with pytest.raises(ValueError, match=r"no picture .*\.txt files \(1\)"):
        imagenet.prepare(tmp_path / "out3", train, val, val_labels=labels)
    assert not (tmp_path / "out3").exists()


def test_official_validation_names():
    wnids = [wnid for wnid, _ in imagenet.class_table()]
    names = [f"ILSVRC2012_val_{i:08d}.JPEG" for i in range(50_000, 0, -1)]
    labels = imagenet.official_val_labels(names, "val", wnids)
    assert wnids[labels[-1]] == "n01751748"  # of ILSVRC2012_val_00000001.JPEG
    np.testing.assert_array_equal(np.bincount(labels), [50] * 1000)
    with pytest.raises(ValueError, match="is not named as"):
        imagenet.official_val_labels([*names[1:], "x.JPEG"], "val", wnids)
    with pytest.raises(ValueError, match="twice"):
        imagenet.official_val_labels([*names[1:], names[1]], "val", wnids)
    with pytest.raises(ValueError, match="is no class of the training set"):
        imagenet.official_val_labels(names, "val", wnids[1:])


def test_a_bad_sector_does_not_end_the_preparation(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(reading.time, "sleep", lambda seconds: None)
    path = tmp_path / "train.tar"
    path.write_bytes(nested(count=8))
    original = imagenet.read_member

    def unreliable(file, member):
        if member.name == "5.JPEG" and member.offset < 20_000:
            raise OSError(5, "Input/output error")
        return original(file, member)

    monkeypatch.setattr(imagenet, "read_member", unreliable)
    with caplog.at_level("WARNING"):
        table = imagenet.prepare(tmp_path / "out", path, report=len)["train"]
    assert table["skipped"] == ["5.JPEG"] and "5.JPEG is left out: OSError" in caplog.text
    assert [shard["records"] for shard in table["shards"]] == [7, 8, 8]
