"""A file of arrays is read whole or refused, whatever its bytes say."""

import io
import zipfile

import numpy as np
import pytest

from var_jax.evaluation.array_files import array_names, open_array, read_array


def header(shape, descr="|u1", fortran=False, version=1):
    stream = io.BytesIO()
    write = getattr(np.lib.format, f"write_array_header_{version}_0")
    write(stream, {"descr": descr, "fortran_order": fortran, "shape": shape})
    return stream.getvalue()


def write_npz(path, **members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)
    return path


def refused(path, name, *words):
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        read_array(path, name)
    message = str(error.value)
    assert "\n" not in message and message.endswith("."), message
    for word in words:
        assert word in message, message


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3), (2, 0, 3), (2, 3, 4)])
def test_arrays_come_back(tmp_path, save, order, shape):
    array = np.asarray(np.arange(np.prod(shape, dtype=int)).reshape(shape), order=order)
    save(tmp_path / "a.npz", x=array, y=array.astype(np.float16))
    np.save(tmp_path / "a.npy", array)
    assert array_names(tmp_path / "a.npz") == ["x", "y"]
    assert array_names(tmp_path / "a.npy") == ["arr_0"]
    for found in (read_array(tmp_path / "a.npz", "x"), read_array(tmp_path / "a.npy", "arr_0")):
        assert found.dtype == array.dtype and found.shape == array.shape
        np.testing.assert_array_equal(found, array)


def test_pieces_are_the_array(tmp_path):
    array = np.arange(30).reshape(10, 3)
    np.savez_compressed(tmp_path / "a.npz", x=array)
    with open_array(tmp_path / "a.npz", "x") as stored:
        pieces = [stored.read(4), stored.read(4), stored.read(2)]
    np.testing.assert_array_equal(np.concatenate(pieces), array)


@pytest.mark.parametrize(
    "data, words",
    [
        (header((4, 2)) + b"\0" * 7, ["ends 1 bytes too early"]),
        (header((4, 2)) + b"\0" * 9, ["1 bytes behind", "joined"]),
        (2 * (header((4, 2)) + b"\0" * 8), ["bytes behind"]),
        (header((10**18,)), ["too early"]),
        (header((-1, 8)) + b"\0" * 8, ["shape (-1, 8)"]),
        (header((4, 2), version=2)[:20], ["damaged"]),
        (b"\x93NUMPY\x07\x00" + b"\0" * 20, ["damaged"]),
        (header((2,), "|O") + b"\0" * 16, ["not an array of numbers"]),
        (header((2,), [("a", "<i4")]) + b"\0" * 8, ["not an array of numbers"]),
        (header((4, 2)).replace(b"|u1", b"|x9") + b"\0" * 8, ["damaged"]),
        (header((4, 2)).replace(b"{", b"(") + b"\0" * 8, ["damaged"]),
        (header((4, 2)).replace(b"'shape'", b"'shade'") + b"\0" * 8, ["damaged"]),
    ],
)
def test_headers_that_lie_are_refused(tmp_path, data, words):
    (tmp_path / "a.npy").write_bytes(data)
    refused(tmp_path / "a.npy", "arr_0", *words)
    refused(write_npz(tmp_path / "a.npz", x=data), "x", *words)


def test_cut_and_joined_archives_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.arange(1000), y=np.arange(10))
    data = (tmp_path / "a.npz").read_bytes()
    path = tmp_path / "b.npz"
    for end in (0, 3, 100, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:end])
        refused(path, "x", "not a complete npz")
    path.write_bytes(data + data)
    refused(path, "x", f"begins with {len(data)} bytes", "joined")
    flipped = bytearray(data)
    flipped[5000] ^= 1
    path.write_bytes(flipped)
    refused(path, "x", "damaged inside 'x'")
    with zipfile.ZipFile(path, "w") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("x.npy", header((1,)) + b"\1")
        archive.writestr("x.npy", header((1,)) + b"\2")
    refused(path, "x", "two arrays of the same name")


def test_other_files_are_refused(tmp_path):
    (tmp_path / "page.npz").write_text("<html>not found</html>")
    refused(tmp_path / "page.npz", "x", "not a complete npz", "web page")
    refused(tmp_path / "none.npz", "x", "no file")
    refused(tmp_path, "x", "no file")
    np.savez(tmp_path / "a.npz", x=np.arange(3))
    refused(tmp_path / "a.npz", "z", "'z'")
