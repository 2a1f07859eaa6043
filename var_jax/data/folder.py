"""Pictures in class folders."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent import futures
from typing import Any

import numpy as np
from etils import epath

from var_jax.data.sources import check_split, split_per_class
from var_jax.paths import is_remote

#: File endings that count as images in a folder (any case).
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


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
