"""ImageNet-1k: the class table, and what its official files and folders hold."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Iterator, Sequence
from importlib import resources
from typing import Any

import numpy as np
from absl import logging
from etils import epath
from jaxtyping import Int

from var_jax.data import reading
from var_jax.data.archives import PACKED, Archive, read_archive, read_member
from var_jax.data.class_folders import (
    PICTURE_SUFFIXES,
    check_names,
    describe,
    list_folder,
    printable,
)
from var_jax.data.folder import FolderSource
from var_jax.data.image_writer import (
    Pictures,
    Record,
    Resize,
    check_skipped,
    identity,
    shard_jobs,
    write_split,
)
from var_jax.data.picture_labels import check_all, read_labels
from var_jax.paths import is_remote

#: Images of the official splits.
COUNTS = {"train": 1_281_167, "val": 50_000}
_VAL_SHARDS = 50
_OFFICIAL_VAL = re.compile(r"ILSVRC2012_val_(\d{8})\.jpe?g", re.IGNORECASE)


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


def train_pictures_from_tar(path: epath.PathLike) -> Pictures:
    """The pictures of ILSVRC2012_img_train.tar, a tar of 1,000 tars named by WordNet id.

    Nothing is unpacked to disk.

    Raises:
      ValueError: the file or a class in it is damaged, cut off, compressed, or not of this form.
    """
    archive = read_archive(path)
    packed = [m for m in archive.members if m.name.lower().endswith(PACKED)]
    if packed:
        raise ValueError(
            f"{printable(packed[0].name)} in {path} is compressed, which is not read; unpack it "
            "and give a folder of class folders."
        )
    classes = {}
    for member in archive.select((".tar",)):
        wnid = member.base_name[: -len(".tar")]
        if wnid in classes:
            raise ValueError(f"{path} holds two tars of class {printable(wnid)}; pack it again.")
        classes[wnid] = member
    if not classes:
        there = f" (but {describe(archive.left_out)})" if archive.left_out else ""
        raise ValueError(
            f"{path} holds no class tars (n01440764.tar, ...){there}; give "
            "ILSVRC2012_img_train.tar, or unpack it and give the folder of class folders."
        )
    _say_left_out(path, archive)
    check_names(list(classes), os.fspath(path))
    labels = labels_of_wnids(list(classes))

    def read(wnid: str) -> Iterator[Record]:
        inner = read_archive(path, classes[wnid])
        where = f"{printable(classes[wnid].name)} in {path}"
        members = inner.select(PICTURE_SUFFIXES)
        if not members:
            there = f" (but {describe(inner.left_out)})" if inner.left_out else ""
            raise ValueError(f"{where} holds no picture{there}.")
        _say_left_out(where, inner)
        with open(path, "rb") as file:
            for member in members:
                name = printable(member.name)
                yield _picture(lambda m=member: read_member(file, m), name), labels[wnid], name

    jobs = shard_jobs([functools.partial(read, wnid) for wnid in labels])
    return Pictures(
        list(labels), jobs, identity((w, classes[w].offset, classes[w].size) for w in labels)
    )


def val_pictures_from_tar(
    path: epath.PathLike, val_labels: epath.PathLike | None, wnids: Sequence[str]
) -> Pictures:
    """The pictures of ILSVRC2012_img_val.tar, or of any tar of pictures and a list of labels.

    Args:
      path: the tar file.
      val_labels: see `picture_labels.read_labels`; by default the table that tensorflow-datasets
        ships, for pictures with the official names.
      wnids: all ids in label order.

    Raises:
      ValueError: the file is damaged or cut off, or the labels do not fit it.
    """
    archive = read_archive(path)
    members = sorted(archive.select(PICTURE_SUFFIXES), key=lambda member: member.base_name)
    if not members:
        there = f" (but {describe(archive.left_out)})" if archive.left_out else ""
        raise ValueError(f"{path} holds no picture{there}; give ILSVRC2012_img_val.tar.")
    _say_left_out(path, archive)
    names = [member.name for member in members]
    if val_labels is None:
        labels = official_val_labels(names, path, wnids)
    else:
        labels = read_labels(val_labels, names, wnids)

    def read(part: np.ndarray) -> Iterator[Record]:
        with open(path, "rb") as file:
            for i in part:
                name = printable(members[i].base_name)
                image = _picture(lambda m=members[i]: read_member(file, m), name)
                yield image, int(labels[i]), name

    parts = np.array_split(np.arange(len(members)), min(_VAL_SHARDS, len(members)))
    jobs = shard_jobs([functools.partial(read, part) for part in parts])
    what = ((m.name, m.size, int(n)) for m, n in zip(members, labels, strict=True))
    return Pictures(list(wnids), jobs, identity(what))


def official_val_labels(
    names: Sequence[str], where: epath.PathLike, wnids: Sequence[str]
) -> Int[np.ndarray, " n"]:
    """Labels of ImageNet's 50,000 validation pictures, by their official names.

    Args:
      names: paths of the pictures.
      where: the file or folder that holds them, for messages.
      wnids: all ids in label order.

    Raises:
      ValueError: these are not those pictures.
    """
    try:
        table = resources.files("tensorflow_datasets") / "datasets/imagenet2012"
        ids = table.joinpath("validation_labels.txt").read_text().split()
    except (ImportError, FileNotFoundError) as error:
        raise FileNotFoundError(
            "The labels of the validation images are needed: install tensorflow-datasets, "
            "which ships them, or give --val_labels with one WordNet id a line."
        ) from error
    if len(names) != len(ids):
        raise ValueError(
            f"{where} holds {len(names)} images, but there are {len(ids)} labels of ImageNet's "
            "validation images; give --val_labels if these are others."
        )
    numbers = []
    for name in names:
        match = _OFFICIAL_VAL.fullmatch(os.path.basename(name))
        if match is None or not 1 <= int(match[1]) <= len(ids):
            raise ValueError(
                f"{printable(name)} of {where} is not named as ImageNet's validation images are, "
                "so its label is not known; give --val_labels with lines of file name and class."
            )
        numbers.append(int(match[1]) - 1)
    if len(set(numbers)) != len(ids):
        raise ValueError(f"{where} holds a validation image twice; unpack the official file.")
    check_all("ImageNet's validation images", ids, wnids)
    labels = {wnid: label for label, wnid in enumerate(wnids)}
    return np.array([labels[ids[number]] for number in numbers], np.int64)


def pictures_from_folder(
    path: epath.PathLike,
    class_names: Sequence[str] | None = None,
    labels: epath.PathLike | None = None,
) -> Pictures:
    """The pictures of class folders (unpacked ImageNet, or any data set).

    Args:
      path: folder with one folder per class.
      class_names: the training split's classes, in label order, for a validation folder; it may
        also be ImageNet's, unpacked into one folder.
      labels: the classes of a validation folder's pictures; see `picture_labels.read_labels`.

    Raises:
      ValueError: see `FolderSource`.
    """
    label = None
    if class_names is not None and labels is not None:
        label = functools.partial(read_labels, labels, class_names=class_names)
    elif class_names is not None and _is_official_val(path):
        label = functools.partial(official_val_labels, where=path, wnids=class_names)
    source = FolderSource(
        path, class_names=class_names, allow_missing=class_names is not None, label=label
    )
    if class_names is None and all(name.startswith("n") for name in source.class_names):
        labels_of_wnids(source.class_names)
    skipped: list[str] = []

    def read(label: int) -> Iterator[Record]:
        for i in np.flatnonzero(source.labels == label):
            name = source.relative(int(i))
            image = _picture(lambda i=int(i): source[i]["image"], name)
            if image is None:
                skipped.append(name)
                check_skipped(skipped, len(source))
            yield image, label, name

    jobs = shard_jobs([functools.partial(read, int(n)) for n in np.unique(source.labels)])
    what = ((source.relative(i), int(n)) for i, n in enumerate(source.labels))
    return Pictures(list(source.class_names), jobs, identity(what))


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
      train: ILSVRC2012_img_train.tar, or a folder with one folder per class.
      val: ILSVRC2012_img_val.tar, or a folder with one folder per class; None: no such split.
      val_labels: see `picture_labels.read_labels`.
      resize, num_threads, report: see `image_writer.write_split`.

    Returns:
      Split -> table of contents.
    """
    _check_places(output, train, val)
    if epath.Path(train).is_dir():
        pictures = {"train": pictures_from_folder(train)}
    else:
        pictures = {"train": train_pictures_from_tar(train)}
    wnids = pictures["train"].class_names
    names = class_names_of(wnids)
    # The validation set first: it takes a minute and shows mistakes early.
    if val is not None:
        if epath.Path(val).is_dir():
            found = pictures_from_folder(val, wnids, val_labels)
        else:
            found = val_pictures_from_tar(val, val_labels, wnids)
        pictures = {"val": found, **pictures}
    known = sum(wnid in dict(class_table()) for wnid in wnids)
    if known == len(wnids) < len(class_table()):
        logging.warning(
            "%s has %d of the %d classes of ImageNet-1k, so its labels are not those of the whole.",
            train,
            known,
            len(class_table()),
        )
    tables = {}
    for split, found in pictures.items():
        tables[split] = write_split(
            epath.Path(output) / split,
            split,
            found,
            names,
            resize=resize,
            num_threads=num_threads,
            report=report,
        )
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


def _check_places(
    output: epath.PathLike, train: epath.PathLike, val: epath.PathLike | None
) -> None:
    for path in (train, val):
        if path is None:
            continue
        if not epath.Path(path).exists():
            raise FileNotFoundError(f"{path} does not exist; give the tar file or folder.")
        if is_remote(path):
            if not epath.Path(path).is_dir():
                raise ValueError(
                    f"{path} must be a local file: a tar file is read at random places."
                )
        elif not is_remote(output) and _is_in(output, path):
            raise ValueError(
                f"The output {output} lies in the input {path}, whose classes it would change; "
                "choose another directory."
            )
    if val is not None and os.path.realpath(train) == os.path.realpath(val):
        raise ValueError(f"--train and --val are the same, {train}; give the two splits.")


def _picture(read: Callable[[], bytes], name: str) -> bytes | None:
    """The picture, or None with a warning if it cannot be read."""
    try:
        return reading.patiently(read)
    except reading.UnreadableRecord as error:
        logging.warning("%s is left out: %s.", name, error)
        return None


def _is_in(inner: epath.PathLike, outer: epath.PathLike) -> bool:
    inner, outer = os.path.realpath(inner), os.path.realpath(outer)
    return os.path.commonpath([inner, outer]) == outer


def _is_official_val(path: epath.PathLike) -> bool:
    """Whether a folder is ImageNet's validation set as its tar file unpacks, without classes."""
    tree = list_folder(path, deep=False)
    return not tree.folders and any(map(_OFFICIAL_VAL.fullmatch, tree.pictures))


def _say_left_out(where: epath.PathLike, archive: Archive) -> None:
    if archive.left_out:
        logging.warning("Left out of %s: %s.", where, describe(archive.left_out))


def class_names_of(wnids: Sequence[str]) -> list[str]:
    """Readable names of ImageNet-1k's ids ("n02099601 golden retriever"); others unchanged."""
    known = dict(class_table())
    return [f"{wnid} {known[wnid]}" if wnid in known else wnid for wnid in wnids]
