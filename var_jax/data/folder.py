"""Pictures in class folders."""

from __future__ import annotations

import collections
import functools
import os
from collections.abc import Callable, Sequence
from concurrent import futures
from typing import Any

import numpy as np
from absl import logging
from etils import epath

from var_jax.data import class_folders
from var_jax.data.caption_files import CAPTION_FILES, CaptionTable, read_captions
from var_jax.data.class_folders import list_folder, printable, same_name
from var_jax.data.picture_labels import read_labels
from var_jax.data.sources import check_split, split_per_class
from var_jax.paths import is_remote

_LOOSE = "pictures beside the class folders"


class FolderSource:
    """Pictures in class folders: the sorted folder names give the ids, as ImageFolder does.

    Only names are listed at construction; a file is opened when its record is asked for. Links
    are followed; what is left out (hidden and system folders, other files, pictures beside the
    class folders) is counted in `left_out` and said in one warning.

    Args:
      root: folder (local or gs://) with one folder per class, or with pictures and no folder
        at all, which makes one class 'all' (unconditional training).
      class_names: the class table; by default the sorted folder names. A folder that it lacks
        is an error; one that it has and `root` lacks is an error unless `allow_missing`.
        Composed and decomposed accents are the same name.
      allow_missing: classes of the table need not be there.
      label: pictures below `root` (relative paths) -> their labels, in place of class folders.
        Needs class_names.
      held_out: with a split, so many pictures of each class are set apart for 'val'.
      split: 'train', 'val', or None for everything.
      captions: pictures have captions, see `caption_files.read_captions`, which are read at
        construction.

    Raises:
      FileNotFoundError: `root` does not exist.
      ValueError: no picture, an empty class folder, a folder outside the class table, no class
        folders where there is a class table, folders that are splits or lie above the classes, a
        folder that cannot be listed.
    """

    channels = 3

    def __init__(
        self,
        root: epath.PathLike,
        *,
        class_names: Sequence[str] | None = None,
        allow_missing: bool = False,
        label: Callable[[Sequence[str]], np.ndarray] | None = None,
        held_out: int = 0,
        split: str | None = None,
        captions: bool = False,
    ) -> None:
        self.root = os.fspath(root)
        if not epath.Path(self.root).is_dir():
            raise FileNotFoundError(
                f"The image folder {printable(self.root)} does not exist or is not a folder; give "
                "the folder that holds one folder per class."
            )
        if class_names is not None:
            class_names = [same_name(name) for name in class_names]
        if label is not None:
            files, numbers = self._labelled(label, class_names)
        else:
            top = list_folder(self.root, deep=False)
            self.left_out = top.left_out
            if top.folders:
                class_folders.check_names(top.folders, self.root)
                files, numbers = self._in_folders(
                    top.folders, len(top.pictures), class_names, allow_missing
                )
            else:
                files, numbers = self._flat(top.pictures, class_names)
        self.captioned = captions
        texts: Sequence[tuple[str, ...]] = ()
        if captions:
            texts = read_captions(self.root, files)
            for name in CAPTION_FILES:
                self.left_out.pop(name, None)
        if self.left_out:
            logging.warning(
                "%s has %d pictures in %d classes; left out: %s.",
                printable(self.root),
                len(files),
                len(self.class_names),
                class_folders.describe(self.left_out),
            )
        if held_out and split:
            keep = split_per_class(numbers, held_out, split, printable(self.root))
            files, numbers = [files[i] for i in keep], numbers[keep]
            texts = [texts[i] for i in keep] if captions else ()
        # One bytes array: a list of a million str is slow to send to worker processes.
        self._files = np.array([os.fsencode(f) for f in files])
        self.labels = numbers.astype(np.int64)
        self._captions = CaptionTable(texts)

    def _flat(
        self, pictures: list[str], class_names: Sequence[str] | None
    ) -> tuple[list[str], np.ndarray]:
        if not pictures:
            raise ValueError(_no_picture(f"folder {printable(self.root)}", self.left_out))
        if class_names is not None and tuple(class_names) != ("all",):
            raise ValueError(
                f"{printable(self.root)} holds {len(pictures)} pictures and no class folder, so "
                f"nothing says which of the {len(class_names)} classes each one is; put them into "
                "class folders, or give a file with their labels (prepare_imagenet: --val_labels; "
                "source 'folder': val_labels)."
            )
        self.class_names: tuple[str, ...] = ("all",)
        return pictures, np.zeros(len(pictures), np.int64)

    def _labelled(
        self, label: Callable[[Sequence[str]], np.ndarray], class_names: Sequence[str] | None
    ) -> tuple[list[str], np.ndarray]:
        if class_names is None:
            raise ValueError(f"Labels for {printable(self.root)} need a class table.")
        tree = list_folder(self.root, deep=True)
        self.left_out = tree.left_out
        if not tree.pictures:
            raise ValueError(_no_picture(f"folder {printable(self.root)}", tree.left_out))
        classes = [name for name in tree.folders if same_name(name) in class_names]
        if classes:
            raise ValueError(
                f"{printable(self.root)} has class folders ({classes[0]}, ...), and a file says "
                "which class its pictures are; give the file only for pictures in no class folder."
            )
        self.class_names = tuple(class_names)
        return tree.pictures, label(tree.pictures)

    def _in_folders(
        self,
        folders: list[str],
        num_loose: int,
        class_names: Sequence[str] | None,
        allow_missing: bool,
    ) -> tuple[list[str], np.ndarray]:
        root = printable(self.root)
        folders = sorted(folders, key=same_name)
        table = {
            name: i for i, name in enumerate(class_names or [same_name(name) for name in folders])
        }
        unknown = [f for f in folders if same_name(f) not in table]
        if unknown:
            alike = [n for n in table if n.casefold() == same_name(unknown[0]).casefold()]
            hint = f" ({alike[0]!r} is)" if alike else ""
            raise ValueError(
                f"The class folder {unknown[0]!r} of {root} is none of the {len(table)} "
                f"classes{hint}, so its label would be out of range; rename it or extend the class "
                "table."
            )
        present = {same_name(f) for f in folders}
        missing = [name for name in table if name not in present]
        if missing and not allow_missing:
            raise ValueError(
                f"{root} has no folder for class {missing[0]!r} ({len(missing)} of "
                f"{len(table)} are missing); add the folders or correct the class table."
            )
        if missing:
            logging.warning(
                "%s has folders for %d of the %d classes.", root, len(folders), len(table)
            )
        with futures.ThreadPoolExecutor(16) as pool:
            paths = [os.path.join(self.root, folder) for folder in folders]
            trees = list(pool.map(lambda path: list_folder(path, deep=True), paths))
        self._check_distinct(folders, paths)
        left_out = sum((tree.left_out for tree in trees), collections.Counter())
        self.left_out.update(left_out)
        empty = [f for f, tree in zip(folders, trees, strict=True) if not tree.pictures]
        if empty:
            what = f"class folder(s) {', '.join(empty[:5])} of {root}"
            raise ValueError(_no_picture(what, left_out))
        if class_names is None:
            pictures = {f: tree.pictures for f, tree in zip(folders, trees, strict=True)}
            class_folders.check_not_splits(pictures, self.root)
        files = [
            os.path.join(folder, picture)
            for folder, tree in zip(folders, trees, strict=True)
            for picture in tree.pictures
        ]
        if num_loose > len(files):
            raise ValueError(
                f"{num_loose} pictures lie beside the class folders of {root} and {len(files)} in "
                "them, so it is not clear which are meant; move either away."
            )
        if num_loose:
            self.left_out[_LOOSE] += num_loose
        self.class_names = tuple(table)
        counts = [len(tree.pictures) for tree in trees]
        return files, np.repeat([table[same_name(f)] for f in folders], counts)

    def _check_distinct(self, folders: list[str], paths: list[str]) -> None:
        if is_remote(self.root):
            return
        real: dict[str, str] = {}
        for folder, path in zip(folders, paths, strict=True):
            other = real.setdefault(os.path.realpath(path), folder)
            if other != folder:
                raise ValueError(
                    f"The class folders {other!r} and {folder!r} of {printable(self.root)} are the "
                    "same folder, by a link; remove one."
                )

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    def __len__(self) -> int:
        return len(self._files)

    def _path(self, index: int) -> str:
        return os.path.join(self.root, os.fsdecode(bytes(self._files[index])))

    def relative(self, index: int) -> str:
        """The file's path within the root, for people."""
        return printable(os.fsdecode(bytes(self._files[index])))

    def __getitem__(self, index: int) -> dict[str, Any]:
        path = self._path(index)
        if is_remote(path):
            data = epath.Path(path).read_bytes()
        else:
            with open(path, "rb") as file:
                data = file.read()
        record: dict[str, Any] = {"image": data, "label": int(self.labels[index])}
        if self.captioned:
            record["captions"] = self._captions[index]
        return record

    def name(self, index: int) -> str:
        """The file's path, for people."""
        return printable(self._path(index))


def _no_picture(what: str, left_out: collections.Counter[str]) -> str:
    there = f"; it has {class_folders.describe(left_out)}" if left_out else ""
    return (
        f"The {what} hold(s) no picture (.jpg, .png and whatever else Pillow reads){there}; add "
        "pictures or remove it."
    )


def folder(
    split: str,
    path: epath.PathLike,
    held_out: int = 0,
    class_names: Sequence[str] | None = None,
    val_labels: epath.PathLike | None = None,
    captions: bool = False,
) -> FolderSource:
    """Class folders, either path/<split>/<class>/*.jpg or path/<class>/*.jpg.

    In the first layout the classes of path/train give the ids for every split; 'train' may also
    be called training, 'val' valid or validation, in any case. In the second, 'train' is
    everything, or all but `held_out` pictures of each class, which are 'val'.

    Args:
      split: 'train' or 'val', or the name of any folder below `path` in the first layout.
      path: local or gs:// folder.
      held_out: pictures of each class for 'val' (second layout).
      class_names: class table in label order instead of the sorted folder names.
      val_labels: file with the class of each picture of every split but 'train', where they do
        not lie in class folders; see `picture_labels.read_labels`.
      captions: pictures have captions: x.txt beside x.png with one per line, or metadata.jsonl in
        the folder of the split, or in `path` where there are no splits.
    """
    root = epath.Path(path)
    if not root.is_dir():
        raise FileNotFoundError(
            f"The image folder {root} does not exist or is not a folder; check the path."
        )
    folders = list_folder(root, deep=False).folders
    train = class_folders.find_split(root, folders, "train")
    own = class_folders.find_split(root, folders, split)
    if class_names is not None and {same_name(f) for f in folders} <= set(
        map(same_name, class_names)
    ):
        train = own = None  # All of them are named as classes.
    if train or own:
        _check_not_a_class(root, folders, [name for name in (train, own) if name])
        if not own:
            raise FileNotFoundError(
                f"{root} has a folder {train} but no folder {split!r} (only "
                f"{', '.join(folders)}); add it or choose another split."
            )
        if class_names is None and split != "train" and train:
            class_names = _train_classes(root / train)
        label = None
        if val_labels is not None and split != "train":
            label = functools.partial(read_labels, val_labels, class_names=class_names)
        return FolderSource(
            root / own,
            class_names=class_names,
            allow_missing=split != "train",
            label=label,
            captions=captions,
        )
    check_split(split, str(root))
    if split == "val" and not held_out:
        raise ValueError(
            f"{root} has no folder 'val'; add one, or set held_out to the number of pictures of "
            "each class to set apart."
        )
    return FolderSource(
        root, class_names=class_names, held_out=held_out, split=split, captions=captions
    )


def _train_classes(train: epath.Path) -> list[str]:
    """The class table that the folders of the training split make."""
    names = list_folder(train, deep=False).folders
    class_folders.check_names(names, os.fspath(train))
    return sorted(map(same_name, names)) or ["all"]


def _check_not_a_class(root: epath.Path, folders: Sequence[str], splits: Sequence[str]) -> None:
    """Refuses car/, train/, plane/ with pictures in each of them: is train a split or a class?"""
    known = {name for names in class_folders.SPLIT_FOLDERS.values() for name in (*names, "test")}
    others = [name for name in folders if name.lower() not in known and name not in splits]
    if not others or not any(list_folder(root / name, deep=False).pictures for name in splits):
        return
    beside = [name for name in others if list_folder(root / name, deep=False).pictures]
    if beside:
        raise ValueError(
            f"The folder {splits[0]!r} of {root} could be a split or a class, as {beside[0]!r} "
            "beside it; name all classes as class_names, or move the other folders away."
        )
