"""Hand-made PyTorch files."""

import pickle
import struct
import zipfile

import numpy as np
import pytest

from var_jax.convert.torch_file import open_state


def text(value):
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def number(value):
    if value < 2**31:
        return b"J" + struct.pack("<i", value)
    data = pickle.encode_long(value)
    return b"\x8a" + bytes([len(data)]) + data


def tensor(shape, strides, *, offset=0, numel=4, key="0", storage="torch\nFloatStorage"):
    """The opcodes of one tensor, as PyTorch writes them."""
    return b"".join(
        [
            b"ctorch._utils\n_rebuild_tensor_v2\n((",
            text("storage") + b"c" + storage.encode() + b"\n" + text(key) + text("cpu"),
            number(numel) + b"tQ",
            number(offset),
            b"(" + b"".join(number(n) for n in shape) + b"t",
            b"(" + b"".join(number(n) for n in strides) + b"t",
            b"\x89ccollections\nOrderedDict\n)RtR",
        ]
    )


def state_pickle(**entries):
    body = b"".join(text(name) + value for name, value in entries.items())
    return b"\x80\x02}(" + body + b"u."


def write_file(path, data_pickle, records=None, compression=zipfile.ZIP_STORED):
    records = {"data/0": np.arange(4, dtype="<f4").tobytes()} if records is None else records
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", data_pickle)
        for name, data in records.items():
            archive.writestr(f"archive/{name}", data)
    return path


def refused(path, *words):
    with pytest.raises(ValueError) as error:
        open_state(path)
    message = str(error.value)
    assert "\n" not in message and message.endswith("."), message
    for word in words:
        assert word in message, message
