"""Images in files, under one rule for all commands that read some.

They are an npz with images under `arr_0` or `images`, an npy, or a folder of pictures in the
order of their names, numbers in them as numbers. All is checked before anything long starts,
and read batch by batch.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from typing import Any

import numpy as np
from absl import logging
from etils import epath
from PIL import Image

from var_jax.evaluation import array_files
from var_jax.evaluation.generated.npz_images import as_rgb, read_note
from var_jax.evaluation.inception.weights import file_sha256

NAMES = (array_files.FIRST, "images")
LABELS = ("labels", "arr_1", "label", "y")
#: What floating point images may span, as flags and notes say it.
RANGES = {"-1..1": (-1.0, 1.0), "0..1": (0.0, 1.0), "0..255": (0.0, 255.0)}
_TOLERANCE = 1e-3  # of the width of a range: decoders overshoot a little
_DARK_SHARE = 0.01  # so many values below 0 say that 0 is middle grey
_ARRAYS = (".npz", ".npy")
_THREADS = 16


@dataclasses.dataclass(frozen=True)
class Images:
    """Images of a file or a folder.

    Attributes:
      path: of it.
      shape: [N, H, W, c], c 1 or 3.
      dtype: as stored.
      value_range: 'uint8', or a name of RANGES.
      labels: int [N] stored beside the images, or None.
      raw: size -> the images in order as they are stored, at most `size` at once.
    """

    path: str
    shape: tuple[int, ...]
    dtype: np.dtype
    value_range: str
    labels: np.ndarray | None
    raw: Callable[[int], Iterator[np.ndarray]] = dataclasses.field(repr=False)

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def class_sorted(self) -> bool:
        """Whether the labels beside the images come in ascending order."""
        labels = self.labels
        return labels is not None and bool((np.diff(labels) >= 0).all()) and len(set(labels)) > 1

    def batches(self, size: int) -> Iterator[np.ndarray]:
        """The images in order, uint8 [n, H, W, 3], n at most `size`; grey ones three times."""
        for batch in self.raw(size):
            if self.value_range != "uint8":
                low, high = RANGES[self.value_range]
                scaled = (batch.astype(np.float32) - low) * (255 / (high - low))
                batch = np.clip(np.rint(scaled), 0, 255).astype(np.uint8)
            yield as_rgb(batch)


def open_images(
    path: epath.PathLike, value_range: str | None = None, *, flag: str = "--value_range"
) -> Images:
    """Opens images and checks them.

    Args:
      path: npz, npy or folder, local or gs://.
      value_range: what floating point values span, a name of RANGES. None where the file's note
        says it, or enough values below 0 do.
      flag: what the user gives `value_range` by, for messages.

    Raises:
      FileNotFoundError, ValueError: one sentence.
    """
    if epath.Path(path).is_dir():
        return _checked(_open_folder(epath.Path(path)), value_range)
    key = image_name(path)
    with array_files.open_array(path, key) as array:
        shape, dtype = array.shape, array.dtype
    if len(shape) != 4 or shape[-1] not in (1, 3) or 0 in shape:
        raise ValueError(
            f"{path} holds {key!r} of shape {list(shape)}, not images [N, height, width, 3 or 1]."
        )
    if dtype != np.uint8 and dtype.kind != "f":
        raise ValueError(
            f"{path} holds images of {dtype}; write them as uint8, or as floating point in [-1, 1]."
        )

    def raw(size: int) -> Iterator[np.ndarray]:
        with array_files.open_array(path, key) as array:
            whole = array.read_all() if array.fortran else None
            for start in range(0, shape[0], size):
                count = min(size, shape[0] - start)
                yield array.read(count) if whole is None else whole[start : start + count]

    found = "uint8"
    if dtype != np.uint8:
        stated = value_range or read_note(path).get("value_range")
        found = _find_range(raw(256), dtype, stated, str(path), flag)
    images = Images(str(path), shape, dtype, found, _read_labels(path, shape[0]), raw)
    return _checked(images, value_range)


def _checked(images: Images, value_range: str | None) -> Images:
    if images.value_range == "uint8" and value_range not in (None, "0..255"):
        raise ValueError(f"{images.path} holds uint8 images, which span 0..255, not {value_range}.")
    return images


def image_name(path: epath.PathLike) -> str:
    """The name of a file's images.

    Raises:
      FileNotFoundError, ValueError: it holds none, or two.
    """
    names = array_files.array_names(path)
    found = [name for name in NAMES if name in names]
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(f"{path} holds both 'arr_0' and 'images'; leave one of them.")
    raise ValueError(
        f"{path} has no images under 'arr_0' or 'images'; it has {', '.join(names) or 'nothing'}."
    )


def sha256(path: epath.PathLike) -> str:
    """SHA-256 of a file, or of the names and bytes of a folder's pictures."""
    folder = epath.Path(path)
    if not folder.is_dir():
        return file_sha256(path)
    digest = hashlib.sha256()
    for file in _pictures(folder):
        digest.update(f"{file.relative_to(folder)} {file_sha256(file)}\n".encode())
    return digest.hexdigest()


def _find_range(
    batches: Iterable[np.ndarray], dtype: np.dtype, stated: str | None, path: str, flag: str
) -> str:
    """The range of floating point images, by what is stated or by many values below 0.

    One pixel never decides between two readings: what no statement and no share of values
    makes plain is refused.
    """
    low, high, dark, total = np.inf, -np.inf, 0, 0
    for batch in batches:
        if not np.isfinite(batch).all():
            raise ValueError(f"{path} holds images with numbers that are not finite.")
        low, high = min(low, float(batch.min())), max(high, float(batch.max()))
        dark, total = dark + np.count_nonzero(batch < 0), total + batch.size

    def inside(name: str) -> bool:
        least, most = RANGES[name]
        slack = (most - least) * _TOLERANCE
        return least - slack <= low and high <= most + slack

    values = f"{path} holds {dtype} images with values from {low:.4g} to {high:.4g}"
    if stated is not None:
        if stated not in RANGES:
            raise ValueError(f"{path} says that its values span {stated!r}; give {flag}.")
        if not inside(stated):
            raise ValueError(f"{values}, outside {stated}; correct {flag}, or write them as uint8.")
        return stated
    fitting = [name for name in RANGES if inside(name)]
    if not fitting or fitting == ["0..255"]:
        hint = f" or say {flag}=0..255" if fitting else ""
        raise ValueError(f"{values}, outside [-1, 1]; write them as uint8{hint}.")
    if "-1..1" in fitting and dark >= _DARK_SHARE * total:
        return "-1..1"
    raise ValueError(
        f"{values}, which may span {' or '.join(fitting)}; say which by {flag}, or write them as "
        "uint8."
    )


def _read_labels(path: epath.PathLike, count: int) -> np.ndarray | None:
    names = array_files.array_names(path)
    for name in LABELS:
        if name in names:
            labels = array_files.read_array(path, name)
            whole = labels.ndim == 1 and labels.dtype.kind in "iu"
            if whole and len(labels) == count:
                return labels.astype(np.int64)
            if whole and name == LABELS[0]:
                raise ValueError(
                    f"{path} holds {count} images and {len(labels)} labels; one of them is not "
                    "whole."
                )
    return None


def _open_folder(folder: epath.Path) -> Images:
    files = _pictures(folder)
    with futures.ThreadPoolExecutor(_THREADS) as pool:
        shapes = list(pool.map(lambda file: _decode(file).shape, files))
    sizes = {shape[:2] for shape in shapes}
    if len(sizes) > 1:
        other = next(i for i, shape in enumerate(shapes) if shape[:2] != shapes[0][:2])
        (h, w), (y, x) = shapes[0][:2], shapes[other][:2]
        raise ValueError(
            f"{folder} holds pictures of several sizes: {files[0].name} is {h}x{w} px, "
            f"{files[other].name} {y}x{x}; crop or resize them first."
        )
    channels = max(shape[2] for shape in shapes)

    def raw(size: int) -> Iterator[np.ndarray]:
        with futures.ThreadPoolExecutor(_THREADS) as pool:
            for start in range(0, len(files), size):
                found = list(pool.map(_decode, files[start : start + size]))
                yield np.stack([image if channels == 1 else as_rgb(image) for image in found])

    parents = [str(file.parent) for file in files]
    _, labels = np.unique(parents, return_inverse=True)
    return Images(
        str(folder),
        (len(files), *shapes[0][:2], channels),
        np.dtype(np.uint8),
        "uint8",
        labels if len(set(parents)) > 1 else None,
        raw,
    )


def _pictures(folder: epath.Path) -> list[epath.Path]:
    """All pictures below a folder, sorted; what is hidden or of a system is none.

    Raises:
      ValueError: there is none, or there are arrays beside them, so that neither is all.
    """
    Image.init()
    endings = {ending for ending, kind in Image.EXTENSION.items() if kind in Image.OPEN}
    files = list(_files(folder))
    arrays = [file for file in files if file.suffix.lower() in _ARRAYS]
    if arrays:
        raise ValueError(
            f"The folder {folder} holds {arrays[0].relative_to(folder)}; give the path of such a "
            "file, or a folder of pictures alone."
        )
    pictures = [file for file in files if file.suffix.lower() in endings]
    if not pictures:
        raise ValueError(f"The folder {folder} holds no picture, among {len(files)} files.")
    left = [file for file in files if file.suffix.lower() not in endings]
    if left:
        logging.warning(
            "%d files of %s are no pictures, such as %s.", len(left), folder, left[0].name
        )
    return pictures


def _files(folder: epath.Path) -> Iterator[epath.Path]:
    for entry in sorted(folder.iterdir(), key=lambda entry: _natural(entry.name)):
        if entry.name.startswith((".", "@", "__")):
            continue
        if entry.is_dir():
            yield from _files(entry)
        else:
            yield entry


def _natural(name: str) -> list[tuple[int, str]]:
    """A key by which numbers inside names sort as numbers."""
    parts = re.split(r"([0-9]+)", name)
    return [(int(part), "") if i % 2 else (-1, part) for i, part in enumerate(parts)] + [(-1, name)]


def _decode(file: epath.Path) -> np.ndarray:
    """A picture, uint8 [H, W, 1 or 3].

    Raises:
      ValueError: it cannot be read, moves, is transparent, or has no 8 or 16 bits per channel.
    """
    try:
        with file.open("rb") as stream, Image.open(stream) as image:
            if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":
                raise ValueError("it has several frames")
            return _pixels(image)
    except Exception as error:  # decoders of some forty formats raise all kinds
        reason = " ".join(str(error).split())
        if "BytesIO object" in reason or "cannot identify" in reason:
            reason = "it is damaged, or no picture"
        raise ValueError(f"The picture {file} cannot be read: {reason}.") from error


def _pixels(image: Any) -> np.ndarray:
    if image.mode.startswith("I"):  # 16 bits per pixel, in 16 or 32
        wide = np.asarray(image).astype(np.int64)
        if wide.min() < 0 or wide.max() > 65535:
            raise ValueError("it has more than 16 bits per channel")
        return ((wide + 128) // 257).astype(np.uint8)[..., None]
    if image.mode == "F":
        raise ValueError("it holds floating point numbers; write it with 8 bits per channel")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if image.getextrema()[3][0] < 255:
            raise ValueError("parts of it are transparent; put it on a background first")
    grey = image.mode in ("1", "L", "LA")
    pixels = np.asarray(image.convert("L" if grey else "RGB"))
    return pixels[..., None] if grey else pixels
