"""Arrays in npy and npz files, held against the length of the file before they are read.

NumPy's own reader takes the first of two joined files for all there is, reserves whatever memory
a header claims, and reads an archive's member whole; 50,000 images of 256 pixels are 10 GB.
"""

from __future__ import annotations

import contextlib
import io
import lzma
import math
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
from etils import epath

#: The name under which the array of an npy file is known, as np.savez names its first.
FIRST = "arr_0"
_NPY, _ZIP = b"\x93NUMPY", b"PK\x03\x04"
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
    (3, 0): np.lib.format.read_array_header_2_0,  # the same but for the encoding of names
}
_UNREADABLE = (
    ValueError,
    TypeError,
    SyntaxError,
    EOFError,
    OSError,
    RuntimeError,  # NotImplementedError too
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
)


class StoredArray:
    """An array behind its header.

    Attributes:
      shape, dtype: of the array.
      fortran: whether its first axis varies fastest in the file.
    """

    def __init__(self, stream: BinaryIO, length: int, path: str, name: str) -> None:
        self._stream, self._path, self._name = stream, path, name
        try:
            version = np.lib.format.read_magic(stream)
            self.shape, self.fortran, self.dtype = _HEADERS[version](stream)
        except (*_UNREADABLE, KeyError) as error:
            raise ValueError(f"{path} holds a damaged array {name!r} ({_short(error)}).") from error
        if self.dtype.hasobject or self.dtype.names or self.dtype.subdtype:
            raise ValueError(f"{path} holds {name!r} of {self.dtype}, not an array of numbers.")
        if min(self.shape, default=0) < 0:
            raise ValueError(f"{path} holds a damaged array {name!r} (shape {self.shape}).")
        due, there = math.prod(self.shape) * self.dtype.itemsize, length - stream.tell()
        if due != there:
            raise ValueError(
                f"{path} ends {due - there} bytes too early: {name!r} of shape {self.shape} is cut "
                "off; write or copy it again."
                if due > there
                else f"{path} holds {there - due} bytes behind {name!r} of shape {self.shape}, as "
                "if two files had been joined; write it again."
            )

    def read(self, items: int) -> np.ndarray:
        """The next `items` along the first axis of an array in C order."""
        shape = (items, *self.shape[1:])
        data = self._read(math.prod(shape) * self.dtype.itemsize)
        return np.frombuffer(data, self.dtype).reshape(shape)

    def read_all(self) -> np.ndarray:
        """The array, in C order."""
        data = np.frombuffer(self._read(math.prod(self.shape) * self.dtype.itemsize), self.dtype)
        if self.fortran:
            return np.ascontiguousarray(data.reshape(self.shape[::-1]).T)
        return data.reshape(self.shape)

    def _read(self, count: int) -> bytes:
        pieces = []
        while count:
            try:
                piece = self._stream.read(count)
            except _UNREADABLE as error:
                raise ValueError(
                    f"{self._path} is damaged inside {self._name!r} ({_short(error)}); write or "
                    "copy it again."
                ) from error
            if not piece:
                raise ValueError(f"{self._path} ends {count} bytes too early; write it again.")
            pieces.append(piece)
            count -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def array_names(path: epath.PathLike) -> list[str]:
    """Names of the arrays of an npz file; FIRST for an npy file.

    Raises:
      FileNotFoundError, ValueError: one sentence.
    """
    with _open(path) as (_, archive):
        if archive is None:
            return [FIRST]
        return [name[:-4] for name in archive.namelist() if name.endswith(".npy")]


@contextlib.contextmanager
def open_array(path: epath.PathLike, name: str) -> Iterator[StoredArray]:
    """An array of a file, to read piece by piece; of any name where the file is an npy.

    Raises:
      FileNotFoundError, ValueError: one sentence.
    """
    with _open(path) as (file, archive), contextlib.ExitStack() as stack:
        if archive is None:
            length = file.seek(0, io.SEEK_END)
            file.seek(0)
            yield StoredArray(file, length, str(path), name)
            return
        try:
            info = archive.getinfo(f"{name}.npy")
            stream = stack.enter_context(archive.open(info))
        except (*_UNREADABLE, KeyError) as error:
            raise ValueError(f"{path} holds a damaged array {name!r} ({_short(error)}).") from error
        yield StoredArray(stream, info.file_size, str(path), name)


def read_array(path: epath.PathLike, name: str) -> np.ndarray:
    """One array of a file, without unpickling anything."""
    with open_array(path, name) as array:
        return array.read_all()


@contextlib.contextmanager
def _open(path: epath.PathLike) -> Iterator[tuple[BinaryIO, zipfile.ZipFile | None]]:
    file_path = epath.Path(path)
    if not file_path.exists() or file_path.is_dir():
        raise FileNotFoundError(f"There is no file {path}; give the path of an npz or npy file.")
    with file_path.open("rb") as file:
        head = file.read(len(_NPY))
        if head == _NPY:
            yield file, None
            return
        if not head.startswith(_ZIP):
            raise ValueError(
                f"{path} is not a complete npz or npy file (it begins with {head!r}); it may be "
                "cut off, or a web page saved by mistake."
            )
        try:
            archive = zipfile.ZipFile(file)
        except _UNREADABLE as error:
            raise ValueError(f"{path} is not a complete npz file ({_short(error)}).") from error
        with archive:
            names = archive.namelist()
            if len(set(names)) != len(names):
                raise ValueError(f"{path} holds two arrays of the same name; write it again.")
            first = min((info.header_offset for info in archive.infolist()), default=0)
            if first:
                raise ValueError(
                    f"{path} begins with {first} bytes that belong to none of its arrays, as if "
                    "two files had been joined; write it again."
                )
            yield file, archive


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
