"""ImageNet-1k: the class table, and streaming it from the official tar files into shards."""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import os
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from importlib import resources
from typing import Any

import numpy as np
from absl import logging
from etils import epath
from PIL import Image

from var_jax.data import shards
from var_jax.data.folder import FolderSource
from var_jax.paths import is_remote, write_json

#: Images of the official splits.
COUNTS = {"train": 1_281_167, "val": 50_000}
_VAL_SHARDS = 50

# One shard to write: its number, and a function that yields (picture, label, name).
Job = tuple[int, Callable[[], Iterator[tuple[bytes, int, str]]]]


@functools.cache
def class_table() -> tuple[tuple[str, str], ...]:
    """The 1,000 (WordNet id, name) pairs; sorted ids give the labels 0..999.

    Names: "golden retriever" is label 207 (n02099601).
    """
    text = resources.files("var_jax.data").joinpath("imagenet_classes.txt").read_text()
    return tuple(tuple(line.split(" ", 1)) for line in text.splitlines())


def labels_of_wnids(wnids: Sequence[str]) -> dict[str, int]:
    """Label of each WordNet id: its place among the sorted ids.

    Raises:
      ValueError: 1,000 ids that are not ImageNet-1k's, or an id that does not look like one,
        since either would silently shift every label.
    """
    known = [wnid for wnid, _ in class_table()]
    wnids = sorted(wnids)
    if len(wnids) == len(known) and wnids != known:
        odd = next(w for w in wnids if w not in set(known))
        raise ValueError(
            f"{odd!r} is no class of ImageNet-1k (there are 1,000 classes, but not the 1,000 of "
            "ILSVRC 2012); use the official files."
        )
    return {wnid: label for label, wnid in enumerate(wnids)}


@dataclasses.dataclass(frozen=True)
class Resize:
    """Makes stored pictures smaller: short side to `side` px (Lanczos), JPEG of `quality`.

    Files that are small enough already are kept as they are. An average ImageNet picture of
    500x375 px has 1.7 times the pixels to decode that it has at 288 px (1.125 * 256), but the
    second JPEG compression changes pixels a little, so it is a choice and not the default.
    """

    side: int
    quality: int = 95

    def __call__(self, data: bytes) -> bytes:
        """The smaller file; files that cannot be decoded come back unchanged."""
        try:
            image = Image.open(io.BytesIO(data))
            scale = self.side / min(image.size)
            if scale >= 1:
                return data
            size = tuple(max(self.side, int(n * scale)) for n in image.size)
            image = image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
        except Exception as error:  # Pillow raises many kinds; the pipeline will name the file.
            logging.warning("Kept as it is, since it cannot be decoded: %s", error)
            return data
        out = io.BytesIO()
        image.save(out, "JPEG", quality=self.quality)
        return out.getvalue()


def _members(tar: tarfile.TarFile, suffixes: tuple[str, ...]) -> list[tarfile.TarInfo]:
    return [m for m in tar if m.isfile() and m.name.lower().endswith(suffixes)]


def train_jobs_from_tar(path: epath.PathLike) -> tuple[list[str], list[Job]]:
    """One shard a class from ILSVRC2012_img_train.tar, a tar of 1,000 tars named by WordNet id.

    Nothing is unpacked to disk.

    Returns:
      (WordNet ids in label order, jobs).
    """
    with tarfile.open(path, "r:") as outer:
        members = {os.path.basename(m.name)[: -len(".tar")]: m for m in _members(outer, (".tar",))}
    if not members:
        raise ValueError(
            f"{path} holds no class tars (n01440764.tar, ...); give ILSVRC2012_img_train.tar."
        )
    labels = labels_of_wnids(list(members))

    def read(wnid: str) -> Iterator[tuple[bytes, int, str]]:
        with open(path, "rb") as file:
            file.seek(members[wnid].offset_data)
            with tarfile.open(fileobj=file, mode="r:") as inner:
                for member in inner:
                    if member.isfile():
                        yield inner.extractfile(member).read(), labels[wnid], member.name

    return list(labels), [(labels[w], functools.partial(read, w)) for w in labels]


def val_jobs_from_tar(
    path: epath.PathLike, val_labels: epath.PathLike | None, wnids: Sequence[str]
) -> list[Job]:
    """50 shards from ILSVRC2012_img_val.tar.

    Args:
      path: the tar file.
      val_labels: text file with the WordNet id of each validation image, one a line, in the
        order of the file names; by default the table that tensorflow-datasets ships.
      wnids: all ids in label order.
    """
    if val_labels is not None:
        ids = epath.Path(val_labels).read_text().split()
    else:
        try:
            table = resources.files("tensorflow_datasets") / "datasets/imagenet2012"
            ids = table.joinpath("validation_labels.txt").read_text().split()
        except (ImportError, FileNotFoundError) as error:
            raise FileNotFoundError(
                "The labels of the validation images are needed: install tensorflow-datasets, "
                "which ships them, or give --val_labels with one WordNet id a line."
            ) from error
    with tarfile.open(path, "r:") as tar:
        members = sorted(_members(tar, (".jpeg", ".jpg")), key=lambda m: os.path.basename(m.name))
    if len(members) != len(ids):
        raise ValueError(f"{path} holds {len(members)} images, but there are {len(ids)} labels.")
    labels = {wnid: label for label, wnid in enumerate(wnids)}
    unknown = sorted(set(ids) - set(labels))
    if unknown:
        raise ValueError(f"The validation label {unknown[0]!r} is no class of the training set.")

    def read(part: np.ndarray) -> Iterator[tuple[bytes, int, str]]:
        with open(path, "rb") as file:
            for i in part:
                file.seek(members[i].offset_data)
                name = os.path.basename(members[i].name)
                yield file.read(members[i].size), labels[ids[i]], name

    parts = np.array_split(np.arange(len(members)), min(_VAL_SHARDS, len(members)))
    return [(n, functools.partial(read, part)) for n, part in enumerate(parts)]


def jobs_from_folder(
    path: epath.PathLike, class_names: Sequence[str] | None = None
) -> tuple[list[str], list[Job]]:
    """One shard a class from class folders (unpacked ImageNet, or any data set).

    Args:
      path: folder with one folder a class.
      class_names: the training split's classes, in label order, for a validation folder.
    """
    source = FolderSource(path, class_names=class_names, allow_missing=class_names is not None)
    if class_names is None and all(name.startswith("n") for name in source.class_names):
        labels_of_wnids(source.class_names)

    def read(label: int) -> Iterator[tuple[bytes, int, str]]:
        for i in np.flatnonzero(source.labels == label):
            name = os.path.relpath(source.name(int(i)), source.root)
            yield source[int(i)]["image"], label, name

    present = np.unique(source.labels)
    jobs = [(n, functools.partial(read, int(label))) for n, label in enumerate(present)]
    return list(source.class_names), jobs


def write_split(
    directory: epath.PathLike,
    split: str,
    class_names: Sequence[str],
    jobs: Sequence[Job],
    *,
    resize: Resize | None = None,
    num_threads: int = 1,
    report: Callable[[str], None] = logging.info,
) -> dict[str, Any]:
    """Writes one split's shards and its table of contents; finished shards are kept.

    Args:
      directory: the split's directory, local or gs://.
      split: 'train' or 'val'; the shards' prefix.
      class_names: in label order.
      jobs: one a shard.
      resize: makes the pictures smaller first.
      num_threads: shards written at the same time.
      report: called with a line of progress after each shard.

    Returns:
      The table of contents.
    """
    directory = epath.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    settings = {
        "split": split,
        "classes": list(class_names),
        "shards": len(jobs),
        "resize": None if resize is None else dataclasses.asdict(resize),
    }
    path = directory / "settings.json"
    if path.exists():
        if json.loads(path.read_text()) != settings:
            raise ValueError(
                f"{directory} was begun with other settings or another data set; delete it or "
                "choose another output directory."
            )
    else:
        write_json(path, settings)
    start = time.perf_counter()
    done = []

    def write(job: Job) -> dict[str, Any]:
        number, read = job
        name = shards.shard_name(split, number, len(jobs))
        entry_path = directory / f"{name}.json"
        if entry_path.exists() and (directory / name).exists():
            return json.loads(entry_path.read_text())
        labels = set()

        def records() -> Iterator[bytes]:
            for image, label, original in read():
                labels.add(int(label))
                yield shards.pack_image(resize(image) if resize else image, label, original)

        entry = shards.write_shard(directory / name, records(), compress=False)
        entry["labels"] = sorted(labels)
        write_json(entry_path, entry)
        done.append(entry["records"])
        return entry

    entries = []
    with futures.ThreadPoolExecutor(max(1, num_threads)) as pool:
        for entry in pool.map(write, jobs):
            entries.append(entry)
            seconds = time.perf_counter() - start
            left = seconds / max(1, len(done)) * (len(jobs) - len(entries)) / 60
            rate = sum(done) / seconds
            report(
                f"{split}: {len(entries)} of {len(jobs)} shards, "
                f"{sum(e['records'] for e in entries):,} images, {rate:,.0f} images/s, "
                f"{left:.1f} min left"
            )
    table = {
        "kind": "images",
        "split": split,
        "class_names": list(class_names),
        "labels": sorted({label for entry in entries for label in entry["labels"]}),
        "shards": [{k: entry[k] for k in ("file", "records", "bytes")} for entry in entries],
    }
    write_json(directory / shards.METADATA, table)
    for entry in entries:
        (directory / f"{entry['file']}.json").unlink(missing_ok=True)
    return table


def prepare(
    output: epath.PathLike,
    train: epath.PathLike,
    val: epath.PathLike | None = None,
    *,
    val_labels: epath.PathLike | None = None,
    resize: Resize | None = None,
    num_threads: int = 1,
    report: Callable[[str], None] = logging.info,
) -> dict[str, dict[str, Any]]:
    """Writes output/train and output/val; see launch.prepare_imagenet.

    Args:
      output: directory, local or gs://.
      train: ILSVRC2012_img_train.tar, or a folder with one folder a class.
      val: ILSVRC2012_img_val.tar, or a folder with one folder a class; None: no such split.
      val_labels: see `val_jobs_from_tar`.
      resize, num_threads, report: see `write_split`.

    Returns:
      Split -> table of contents.
    """
    for path in (train, val):
        if path is not None and not epath.Path(path).exists():
            raise FileNotFoundError(f"{path} does not exist; give the tar file or folder.")
        if path is not None and is_remote(path) and os.fspath(path).endswith(".tar"):
            raise ValueError(f"{path} must be a local file: a tar file is read at random places.")
    if epath.Path(train).is_dir():
        wnids, jobs = jobs_from_folder(train)
    else:
        wnids, jobs = train_jobs_from_tar(train)
    names = class_names_of(wnids)
    finish = functools.partial(
        write_split, resize=resize, num_threads=num_threads, report=report, class_names=names
    )
    tables = {}
    # The validation set first: it takes a minute and shows mistakes early.
    if val is not None:
        if epath.Path(val).is_dir():
            val_jobs = jobs_from_folder(val, class_names=wnids)[1]
        else:
            val_jobs = val_jobs_from_tar(val, val_labels, wnids)
        tables["val"] = finish(epath.Path(output) / "val", "val", jobs=val_jobs)
    tables["train"] = finish(epath.Path(output) / "train", "train", jobs=jobs)
    if len(names) == len(class_table()):
        for split, table in tables.items():
            count = sum(shard["records"] for shard in table["shards"])
            if count != COUNTS[split]:
                logging.warning(
                    "%s has %d images; the official ImageNet-1k has %d.",
                    split,
                    count,
                    COUNTS[split],
                )
    return tables


def class_names_of(wnids: Sequence[str]) -> list[str]:
    """Readable names of ImageNet-1k's ids ("n02099601 golden retriever"); others unchanged."""
    known = dict(class_table())
    return [f"{wnid} {known[wnid]}" if wnid in known else wnid for wnid in wnids]
