"""What a path means, and files that appear whole."""

import os
import subprocess
import sys

import pytest
from etils import epath

from var_jax import paths

#: What is given, and where it lies; HOME is /home/me, the working directory is CWD.
SPELLINGS = [
    ("/a/b", "/a/b"),
    ("/a/b/", "/a/b"),
    ("/a//b/./c", "/a/b/c"),
    ("/a b/c d", "/a b/c d"),
    ("runs/x", "CWD/runs/x"),
    ("./runs/x/", "CWD/runs/x"),
    ("../x", "CWD/../x"),
    ("link/x", "CWD/link/x"),
    ("~/runs", "/home/me/runs"),
    ("~", "/home/me"),
    ("a~/b", "CWD/a~/b"),
    ("step=3:x", "CWD/step=3:x"),
    ("gs://bucket", "gs://bucket"),
    ("gs://bucket/", "gs://bucket"),
    ("gs://bucket/a/", "gs://bucket/a"),
    ("gs://bucket//a//b c", "gs://bucket/a/b c"),
    ("gs://bucket/~/a", "gs://bucket/~/a"),
]


@pytest.fixture
def here(tmp_path, monkeypatch):
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    return tmp_path


@pytest.mark.parametrize("given, expected", SPELLINGS)
def test_a_place_has_one_name(here, given, expected):
    found = paths.resolve(given)
    assert os.fspath(found) == expected.replace("CWD", str(here))
    assert paths.resolve(found) == found == paths.resolve(epath.Path(given))
    assert paths.is_remote(found) == expected.startswith("gs://")


@pytest.mark.parametrize(
    "given", ["s3://b/a", "file:///a", "gs:/bucket/a", "gcs://b/a", "http://a"]
)
def test_addresses_that_nothing_opens_are_named(given):
    with pytest.raises(ValueError, match=f"{given}.* neither local nor"):
        paths.resolve(given)


@pytest.mark.parametrize(
    "given, message",
    [("", "empty"), ("gs://", "no bucket"), ("gs:///a", "no bucket"), ("gs://b/a[1]", "\\[")],
)
def test_what_is_missing_or_a_pattern_is_said(given, message):
    with pytest.raises(ValueError, match=message):
        paths.resolve(given)


def test_what_opens_buckets_is_asked_for_by_the_name_of_its_extra(monkeypatch):
    monkeypatch.setattr(paths.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'var_jax\[gcs\]'"):
        paths.resolve("gs://bucket/a")


@pytest.fixture(params=["local", "bucket"])
def folder(request, tmp_path):
    if request.param == "local":
        return epath.Path(tmp_path)
    return epath.Path(request.getfixturevalue("bucket")) / "paths" / request.node.originalname


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_whole_or_stays_as_it_was(folder):
    path = folder / "a file.json"
    paths.write_json(path, {"a": 1})
    with pytest.raises(OSError, match="full"), paths.replacing(path) as file:
        file.write(b"half")
        raise OSError("the disk is full")
    assert path.read_text() == '{\n  "a": 1\n}\n' and names(folder) == ["a file.json"]
    with paths.replacing(path) as file:
        file.write(b"new")
        assert path.read_text() == '{\n  "a": 1\n}\n'
    assert path.read_text() == "new" and names(folder) == ["a file.json"]


def test_nothing_is_left_where_a_first_write_fails(folder):
    paths.write_text(folder / "other", "x")
    with pytest.raises(ValueError), paths.replacing(folder / "file") as file:
        file.write(b"half")
        raise ValueError
    assert names(folder) == ["other"]


def test_what_another_process_writes_is_seen(folder, bucket):
    paths.write_text(folder / "first", "1")
    assert names(folder) == ["first"] and not (folder / "second" / "file").exists()
    program = """
import sys
from etils import epath
folder = epath.Path(sys.argv[1])
(folder / "second").mkdir()
(folder / "second" / "file").write_text("2")
(folder / "first").write_text("longer")
"""
    subprocess.run([sys.executable, "-c", program, str(folder)], check=True)
    assert names(folder) == ["first", "second"] and (folder / "second").is_dir()
    assert (folder / "second" / "file").exists()
    assert (folder / "first").read_text() == "longer" and (folder / "first").stat().length == 6
