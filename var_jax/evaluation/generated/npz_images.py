"""Images in npz files, streamed.

50,000 images of 256 pixels are 10 GB: the member of the zip archive is read batch by batch, and
the file is checked before anything long starts.
"""

from __future__ import annotations

import contextlib
import json
import math
import zipfile
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from etils import epath

from var_jax.paths import replacing

IMAGES = "arr_0"
LABELS = ("labels", "arr_1", "label", "y")
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


class NpzImages:
    """The images of an npz file.

    Attributes:
      path: the file.
      shape: [N, H, W, C] of its images.
      dtype: as stored.
      names: the members of the file.
      labels: int [N] stored beside the images, or None.
      value_range: 'uint8', '[-1, 1]' or '[0, 1]'.
    """

    def __init__(self, path: str, key: str = IMAGES):
        """Opens a file and checks it.

        Args:
          path: local or gs:// path.
          key: name of the images: uint8, or floating point in [-1, 1] or [0, 1].

        Raises:
          FileNotFoundError, ValueError: one sentence.
        """
        self.path = str(path)
        self.names = member_names(path)
        self._key = key
        if key not in self.names:
            raise ValueError(
                f"{path} has no array {key!r}; it has {', '.join(self.names) or 'none at all'}."
            )
        with _open_member(path, key) as (_, shape, dtype):
            self.shape, self.dtype = shape, dtype
        if len(self.shape) != 4 or self.shape[-1] not in (1, 3) or 0 in self.shape:
            raise ValueError(
                f"{path} holds {key!r} of shape {list(self.shape)}, not images "
                "[N, height, width, 3 or 1]."
            )
        if self.dtype != np.uint8 and self.dtype.kind != "f":
            raise ValueError(
                f"{path} holds images of {self.dtype}; write them as uint8, or as floating point "
                "in [-1, 1]."
            )
        self.value_range = "uint8" if self.dtype == np.uint8 else self._float_range()
        self.labels = self._read_labels()

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def class_sorted(self) -> bool:
        """Whether the labels beside the images come in ascending order."""
        labels = self.labels
        return labels is not None and bool((np.diff(labels) >= 0).all()) and len(set(labels)) > 1

    def batches(self, size: int) -> Iterator[np.ndarray]:
        """The images in order, uint8 [n, H, W, 3], n at most `size`; grey ones three times."""
        for batch in self._raw(size):
            if self.value_range == "[-1, 1]":
                batch = np.clip(np.rint((batch.astype(np.float32) + 1) * 127.5), 0, 255)
            elif self.value_range == "[0, 1]":
                batch = np.clip(np.rint(batch.astype(np.float32) * 255), 0, 255)
            yield as_rgb(batch.astype(np.uint8, copy=False))

    def _raw(self, size: int) -> Iterator[np.ndarray]:
        with _open_member(self.path, self._key) as (stream, shape, dtype):
            item = math.prod(shape[1:]) * dtype.itemsize
            for start in range(0, shape[0], size):
                count = min(size, shape[0] - start)
                data = _read(stream, count * item, self.path)
                yield np.frombuffer(data, dtype).reshape(count, *shape[1:])

    def _float_range(self) -> str:
        low, high = np.inf, -np.inf
        for batch in self._raw(256):
            low, high = min(low, float(batch.min())), max(high, float(batch.max()))
            if not np.isfinite(batch).all():
                raise ValueError(f"{self.path} holds images with numbers that are not finite.")
            if low < -1.001 or high > 1.001:
                raise ValueError(
                    f"{self.path} holds {self.dtype} images with values from {low:g} to {high:g}, "
                    "outside [-1, 1]; write them as uint8."
                )
        # A set of pictures without one pixel below middle grey was meant as [0, 1].
        return "[0, 1]" if low >= 0 else "[-1, 1]"

    def _read_labels(self) -> np.ndarray | None:
        for name in LABELS:
            if name in self.names:
                labels = read_array(self.path, name)
                if labels.shape == (len(self),) and labels.dtype.kind in "iu":
                    return labels.astype(np.int64)
        return None


def member_names(path: str) -> list[str]:
    """Names of the arrays of an npz file.

    Raises:
      FileNotFoundError, ValueError: one sentence.
    """
    file_path = epath.Path(path)
    if not file_path.exists() or file_path.is_dir():
        raise FileNotFoundError(f"There is no file {path}; give the path of an npz file.")
    try:
        with file_path.open("rb") as file, zipfile.ZipFile(file) as archive:
            return [name[:-4] for name in archive.namelist() if name.endswith(".npy")]
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise ValueError(f"{path} is not a complete npz file ({error}).") from error


def read_array(path: str, key: str) -> np.ndarray:
    """One array of an npz file, without unpickling anything."""
    with (
        epath.Path(path).open("rb") as file,
        zipfile.ZipFile(file) as archive,
        archive.open(f"{key}.npy") as member,
    ):
        return np.lib.format.read_array(member, allow_pickle=False)


def as_rgb(images: np.ndarray) -> np.ndarray:
    """Images [N, H, W, c] with c 1 or 3 -> [N, H, W, 3]; grey ones three times."""
    return np.repeat(images, 3, -1) if images.shape[-1] == 1 else images


def note_array(note: dict[str, Any]) -> np.ndarray:
    """What a file says about itself, as an array to store under `note`."""
    return np.array(json.dumps(note, sort_keys=True))


def read_note(path: str) -> dict[str, Any]:
    """What was stored by `note_array`; empty where there is none."""
    if "note" not in member_names(path):
        return {}
    with contextlib.suppress(ValueError):
        note = json.loads(str(read_array(path, "note")))
        return note if isinstance(note, dict) else {}
    return {}


class ImageSpool:
    """Images of a number that is not known beforehand, on their way to an npz.

    They wait in a file beside it; leaving the context removes that file.

    Args:
      path: local or gs:// path of the npz.
    """

    def __init__(self, path: str) -> None:
        self.count = 0
        self._path = epath.Path(path)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._raw = self._path.parent / f"{self._path.name}.images"
        self._file: Any = None
        self._shape: tuple[int, ...] | None = None

    def __enter__(self) -> ImageSpool:
        self._file = self._raw.open("wb")
        return self

    def __exit__(self, *unused: Any) -> None:
        self._file.close()
        self._raw.unlink(missing_ok=True)

    def append(self, images: np.ndarray) -> None:
        """Adds uint8 [n, H, W, c]."""
        if self._shape is None:
            self._shape = images.shape[1:]
        if images.dtype != np.uint8 or images.shape[1:] != self._shape:
            raise ValueError(
                f"Images of {images.dtype} {list(images.shape[1:])} do not go with uint8 "
                f"{list(self._shape)}."
            )
        self._file.write(np.ascontiguousarray(images).data)
        self.count += len(images)

    def finish(self, **arrays: np.ndarray) -> None:
        """Writes the npz with the images and further arrays."""
        self._file.close()
        with self._raw.open("rb") as file:
            write_images(self._path, self._read(file), self.count, **arrays)

    def _read(self, file: Any, size: int = 256) -> Iterator[np.ndarray]:
        item = math.prod(self._shape)
        for start in range(0, self.count, size):
            data = _read(file, min(size, self.count - start) * item, str(self._raw))
            yield np.frombuffer(data, np.uint8).reshape(-1, *self._shape)


def write_images(
    path: str, batches: Iterable[np.ndarray], count: int, **arrays: np.ndarray
) -> None:
    """Writes images as they come, never all in memory.

    Args:
      path: local or gs:// path of the npz; complete or absent, never half written.
      batches: uint8 [n, H, W, 3], together `count` images.
      count: how many.
      **arrays: further arrays, e.g. labels=.

    Raises:
      ValueError: another number of images, or images that differ in size.
    """
    final = epath.Path(path)
    final.parent.mkdir(parents=True, exist_ok=True)
    with replacing(final) as file, zipfile.ZipFile(file, "w", allowZip64=True) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asarray(array), allow_pickle=False)
        with archive.open(f"{IMAGES}.npy", "w", force_zip64=True) as member:
            shape: tuple[int, ...] | None = None
            done = 0
            for batch in batches:
                if shape is None:
                    shape = batch.shape[1:]
                    header = {"descr": "|u1", "fortran_order": False, "shape": (count, *shape)}
                    np.lib.format.write_array_header_1_0(member, header)
                if batch.dtype != np.uint8 or batch.shape[1:] != shape:
                    raise ValueError(
                        f"Images of {batch.dtype} {list(batch.shape[1:])} do not go into a file of "
                        f"uint8 {list(shape)}."
                    )
                member.write(np.ascontiguousarray(batch).data)
                done += len(batch)
            if done != count:
                raise ValueError(f"{done} images came for {path} where {count} were announced.")


@contextlib.contextmanager
def _open_member(path: str, key: str) -> Iterator[tuple[Any, tuple[int, ...], np.dtype]]:
    """The stream of a member behind its header, with its shape and dtype."""
    with epath.Path(path).open("rb") as file:
        try:
            archive = zipfile.ZipFile(file)
            stream = archive.open(f"{key}.npy")
            version = np.lib.format.read_magic(stream)
            shape, fortran, dtype = _HEADERS[version](stream)
            if fortran or dtype.hasobject:
                raise ValueError("it cannot be streamed; write it again in C order")
        except (KeyError, ValueError, zipfile.BadZipFile, EOFError) as error:
            raise ValueError(f"{path} holds a damaged array {key!r} ({error}).") from error
        with archive, stream:
            yield stream, shape, dtype


def _read(stream, count: int, path: str) -> bytes:
    pieces = []
    while count:
        try:
            piece = stream.read(count)
        except (zipfile.BadZipFile, EOFError, OSError) as error:
            raise ValueError(f"{path} is damaged ({error}); write it again.") from error
        if not piece:
            raise ValueError(f"{path} ends {count} bytes too early; write it again.")
        pieces.append(piece)
        count -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)
