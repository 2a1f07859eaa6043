"""Images on their way to npz files, streamed, and what such a file says about itself."""

from __future__ import annotations

import contextlib
import json
import math
import zipfile
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Num, UInt8

from var_jax import paths
from var_jax.evaluation import array_files


def as_rgb(images: Num[np.ndarray, "*n H W c"]) -> Num[np.ndarray, "*n H W 3"]:
    """Images, or one, with c 1 or 3 -> with 3; grey ones three times."""
    return np.repeat(images, 3, -1) if images.shape[-1] == 1 else images


def note_array(note: dict[str, Any]) -> np.ndarray:
    """What a file says about itself, as an array to store under `note`."""
    return np.array(json.dumps(note, sort_keys=True))


def read_note(path: str) -> dict[str, Any]:
    """What was stored by `note_array`; empty where there is none."""
    if epath.Path(path).is_dir() or "note" not in array_files.array_names(path):
        return {}
    with contextlib.suppress(ValueError):
        note = json.loads(str(array_files.read_array(path, "note")))
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
        with contextlib.suppress(OSError):  # a full disk: what is still in the buffer
            self._file.close()
        self._raw.unlink(missing_ok=True)

    def append(self, images: UInt8[np.ndarray, "*n H W c"]) -> None:
        """Adds images."""
        if self._shape is None:
            self._shape = images.shape[1:]
        if images.dtype != np.uint8 or images.shape[1:] != self._shape:
            raise ValueError(
                f"Images of {images.dtype} {list(images.shape[1:])} do not go with uint8 "
                f"{list(self._shape)}."
            )
        with paths.explaining(self._path):
            self._file.write(np.ascontiguousarray(images).data)
        self.count += len(images)

    def finish(self, **arrays: np.ndarray) -> None:
        """Writes the npz with the images and further arrays."""
        with paths.explaining(self._path):
            self._file.close()
        with self._raw.open("rb") as file:
            write_images(self._path, self._read(file), self.count, **arrays)

    def _read(self, file: Any, size: int = 256) -> Iterator[np.ndarray]:
        item = math.prod(self._shape)
        for start in range(0, self.count, size):
            count = min(size, self.count - start)
            data = np.frombuffer(file.read(count * item), np.uint8)
            yield data.reshape(count, *self._shape)


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
    epath.Path(path).parent.mkdir(parents=True, exist_ok=True)
    with (
        paths.replacing(path) as file,
        zipfile.ZipFile(file, "w", allowZip64=True) as archive,
    ):
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asarray(array), allow_pickle=False)
        with archive.open(f"{array_files.FIRST}.npy", "w", force_zip64=True) as member:
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
