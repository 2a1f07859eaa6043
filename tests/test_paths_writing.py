"""Outputs that cannot be finished leave what was there before."""

import errno
import json
import os
import stat

import pytest

from var_jax import paths


def test_written_whole_in_place_of_the_older_one(tmp_path):
    path = tmp_path / "a.json"
    paths.write_json(path, {"a": 1})
    paths.write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 2}
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize(
    "error, expected, words",
    [
        (OSError(errno.ENOSPC, "x"), paths.WriteError, "a.npz: the disk is full"),
        (OSError(errno.EDQUOT, "x"), paths.WriteError, "a.npz: the quota is used up"),
        (OSError(errno.EFBIG, "x"), paths.WriteError, "a.npz: files may not grow so large"),
        (OSError(errno.EIO, "of the input"), OSError, "of the input"),
        (ValueError("of the work"), ValueError, "of the work"),
        (KeyboardInterrupt("stopped"), KeyboardInterrupt, "stopped"),
    ],
)
def test_whatever_stops_it_the_older_file_stays_and_nothing_else(tmp_path, error, expected, words):
    path = tmp_path / "a.npz"
    path.write_bytes(b"good")
    with pytest.raises(expected, match=words), paths.replacing(path) as file:
        file.write(b"half")
        raise error
    assert path.read_bytes() == b"good"
    assert [file.name for file in tmp_path.iterdir()] == ["a.npz"]


def test_a_link_is_followed_and_stays(tmp_path):
    (tmp_path / "large").mkdir()
    path = tmp_path / "out.bin"
    path.symlink_to(tmp_path / "large" / "real.bin")
    for data in (b"1", b"22"):
        paths.write_bytes(path, data)
        assert path.is_symlink() and (tmp_path / "large" / "real.bin").read_bytes() == data


def test_pipes_and_devices_are_not_replaced(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    paths.write_bytes(pipe, b"through")
    assert os.read(reader, 100) == b"through"
    os.close(reader)
    assert stat.S_ISFIFO(os.stat(pipe).st_mode)
    with pytest.raises(paths.WriteError, match="the disk is full"):
        paths.write_bytes("/dev/full", b"x")


def test_a_place_that_cannot_be_written_is_refused_before_the_work(tmp_path):
    paths.check_writable(tmp_path / "a.npz")
    with pytest.raises(FileNotFoundError, match="folder of the output .* does not exist"):
        paths.check_writable(tmp_path / "none" / "a.npz")
    with pytest.raises(IsADirectoryError, match="is a folder"):
        paths.check_writable(tmp_path)
