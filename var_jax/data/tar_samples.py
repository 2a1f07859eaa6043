"""Tar files of samples, as webdataset packs them: 17.jpg, 17.txt and 17.cls are one sample.

Files of one name up to its first dot belong together. The archives are read where they lie, in any
order: at construction their headers and the classes alone.
"""

from __future__ import annotations

import collections
import dataclasses
import fnmatch
import json
import os
import posixpath
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import logging
from etils import epath

from var_jax.data.archives import Archive, Member, read_archive, read_member
from var_jax.data.caption_files import caption_lines
from var_jax.data.captions import clean
from var_jax.data.class_folders import (
    PICTURE_SUFFIXES,
    describe,
    ending,
    find_split,
    list_folder,
    printable,
)
from var_jax.data.shards import localise
from var_jax.data.sources import check_labels, check_split, split_per_class

_NO_PICTURE = "samples without a picture"


class TarSource:
    """The samples of tar files, in the order of the files' names and of their places in them.

    Args:
      paths: local files.
      class_names: the class table; by default the numbers up to the largest one. A sample's class
        is the number in its file .cls; where no sample has one, all are of one class 'all'.
      held_out: with a split, so many samples of each class are set apart for 'val'.
      split: 'train', 'val', or None for everything.
      captions: True: a sample's captions are the lines of its file .txt. A name: what its file
        .json says under that name, a text or a list of texts. They are read with the picture, so
        that a file that holds none makes the sample unreadable, which is then skipped.

    Raises:
      ValueError: an archive that is damaged (see `read_archive`), no picture, two pictures of one
        sample, a picture without caption or class, or a class that is no number of the table.
    """

    channels = 3

    def __init__(
        self,
        paths: Sequence[str],
        *,
        class_names: Sequence[str] | None = None,
        held_out: int = 0,
        split: str | None = None,
        captions: bool | str = False,
    ) -> None:
        self.captioned = bool(captions)
        self._key = captions if isinstance(captions, str) else None
        self._paths = [os.fspath(path) for path in paths]
        left_out: collections.Counter[str] = collections.Counter()
        text = (".json" if self._key else ".txt") if captions else None
        rows, names, labels = [], [], []
        for number, path in enumerate(self._paths):
            archive = read_archive(path)
            with open(path, "rb") as file:
                for sample in _samples(archive, path, text):
                    picture, told = sample.picture, sample.text or Member("", 0, 0)
                    rows.append((number, picture.offset, picture.size, told.offset, told.size))
                    names.append(picture.name)
                    label = sample.label and _class_in(read_member(file, sample.label), path)
                    labels.append(label)
            left_out += archive.left_out
        if not rows:
            there = f" (but {describe(left_out)})" if left_out else ""
            raise ValueError(f"{printable(self._paths[0])} holds no picture{there}.")
        if left_out:
            logging.warning(
                "%d tar files have %d samples; left out: %s.",
                len(self._paths),
                len(rows),
                describe(left_out),
            )
        # Arrays: lists of millions of objects are slow to send to worker processes.
        self._places = np.array(rows, np.int64)
        self._names = np.array([os.fsencode(name) for name in names])
        self.labels, self.class_names = self._classes(labels, class_names)
        if held_out and split:
            kept = split_per_class(self.labels, held_out, split, printable(self._paths[0]))
            tables = (self._places, self._names, self.labels)
            self._places, self._names, self.labels = (table[kept] for table in tables)

    def _classes(
        self, labels: Sequence[int | None], class_names: Sequence[str] | None
    ) -> tuple[np.ndarray, tuple[str, ...]]:
        missing = [i for i, label in enumerate(labels) if label is None]
        if len(missing) == len(labels):
            if class_names is not None and tuple(class_names) != ("all",):
                raise ValueError(
                    f"No sample of {printable(self._paths[0])} has a class, so class_names has "
                    "nothing to name; pack a file x.cls with each x.jpg, or leave it out."
                )
            return np.zeros(len(labels), np.int64), ("all",)
        if missing:
            raise ValueError(
                f"{self.name(missing[0])} has no class ({len(missing)} of {len(labels)} samples); "
                "pack a file x.cls with the number of its class beside each picture, or none."
            )
        found = np.array(labels, np.int64)
        names = tuple(class_names or map(str, range(int(found.max()) + 1)))
        check_labels(found, len(names), printable(self._paths[0]))
        return found, names

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> dict[str, Any]:
        number, start, size, text_start, text_size = map(int, self._places[index])
        name = self.name(index)
        record: dict[str, Any] = {"label": int(self.labels[index])}
        with open(self._paths[number], "rb") as file:
            record["image"] = read_member(file, Member(name, start, size))
            if self.captioned:
                data = read_member(file, Member(name, text_start, text_size))
                record["captions"] = self._captions(data, f"The caption of {name}")
        return record

    def _captions(self, data: bytes, where: str) -> tuple[str, ...]:
        if self._key is None:
            return caption_lines(data, where)
        try:
            entry = json.loads(data)
        except ValueError as error:
            raise ValueError(f"{where} is no JSON ({error}).") from None
        texts = entry.get(self._key) if isinstance(entry, dict) else None
        texts = [texts] if isinstance(texts, str) else texts
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"{where} has no text, nor a list of texts, under {self._key!r}.")
        found = tuple(filter(None, (clean(text, where) for text in texts)))
        if not found:
            raise ValueError(f"{where} is empty.")
        return found

    def name(self, index: int) -> str:
        """E.g. '/data/train-0003.tar: 17.jpg'."""
        path = self._paths[self._places[index, 0]]
        return f"{printable(path)}: {printable(os.fsdecode(bytes(self._names[index])))}"


@dataclasses.dataclass
class _Sample:
    """The files of a sample that are read, where it has them."""

    picture: Member | None = None
    text: Member | None = None
    label: Member | None = None


def _samples(archive: Archive, path: str, text: str | None) -> list[_Sample]:
    """Those with a picture, in the order of these; what is not read is counted as left out."""
    found: dict[str, _Sample] = collections.defaultdict(_Sample)
    for member in archive.members:
        folder, base = posixpath.split(member.name)
        stem, dot, rest = base.partition(".")
        suffix = f"{dot}{rest}".lower()
        sample = found[posixpath.join(folder, stem)]
        if suffix in PICTURE_SUFFIXES:
            if sample.picture is not None:
                raise ValueError(
                    f"{printable(path)} holds {printable(sample.picture.name)} and "
                    f"{printable(member.name)}, two pictures of one sample; pack one of them, or "
                    "names that differ before their first dot."
                )
            sample.picture = member
        elif suffix == ".cls":
            sample.label = member
        elif suffix == text:
            sample.text = member
        else:
            archive.left_out[ending(member.name)] += 1
    whole = [sample for sample in found.values() if sample.picture]
    bare = [sample for sample in found.values() if not sample.picture]
    archive.left_out[_NO_PICTURE] += sum(bool(s.text or s.label) for s in bare)
    missing = [sample for sample in whole if text and not sample.text]
    if missing:
        raise ValueError(
            f"{printable(missing[0].picture.name)} of {printable(path)} has no caption "
            f"({len(missing)} of {len(whole)} samples); pack a file x{text} beside each picture."
        )
    return whole


def _class_in(data: bytes, path: str) -> int:
    try:
        return int(data)
    except ValueError:
        raise ValueError(
            f"A file .cls of {printable(path)} holds {data[:20]!r}, which is no number of a class."
        ) from None


def tar(
    split: str,
    path: epath.PathLike,
    files: str = "*.tar",
    held_out: int = 0,
    class_names: Sequence[str] | None = None,
    captions: bool | str = False,
) -> TarSource:
    """The tar files path/<split>/*.tar, or path/*.tar.

    Args:
      split: 'train' or 'val'; 'train' may also be called training, 'val' valid or validation.
      path: local or gs:// folder; what lies in a bucket is copied to the cache directory.
      files: which files of the folder, as a pattern; {split} in it stands for the split, such as
        '{split}-*.tar'.
      held_out: samples of each class for 'val', where neither folders nor names part the splits.
      class_names, captions: see `TarSource`.

    Raises:
      FileNotFoundError: no such folder, or no such file in it.
      ValueError: see `TarSource`, or no validation set.
    """
    root = epath.Path(path)
    if not root.is_dir():
        raise FileNotFoundError(f"The folder {root} of tar files does not exist; check the path.")
    folders = list_folder(root, deep=False).folders
    own = find_split(root, folders, split)
    folder = root / own if own else root
    pattern = files.replace("{split}", split)
    names = sorted(p.name for p in folder.iterdir() if fnmatch.fnmatchcase(p.name, pattern))
    if not names:
        raise FileNotFoundError(f"{folder} has no file {pattern}; check `path` and `files`.")
    shards = [{"file": name, "bytes": (folder / name).stat().length} for name in names]
    local = localise(folder, {"shards": shards})
    paths = [os.fspath(local / name) for name in names]
    given = dict(class_names=class_names, captions=captions)
    if own or "{split}" in files:
        return TarSource(paths, **given)
    check_split(split, str(root))
    if split == "val" and not held_out:
        raise ValueError(
            f"{root} has no folder 'val'; add one, say with files='{{split}}-*.tar' how its files "
            "are called, or set held_out to the number of samples of each class to set apart."
        )
    return TarSource(paths, held_out=held_out, split=split, **given)
