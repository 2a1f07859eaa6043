"""What lies in a tree of folders: the pictures, and what is left out and why.

Folders of real data sets hold more than pictures: what desktops, storage boxes and notebooks hide
in them, links, half of another data set. What is no picture is left out and counted; a tree that
can be read in two ways is refused.
"""

from __future__ import annotations

import collections
import dataclasses
import errno
import os
import re
import unicodedata
from collections.abc import Sequence

import fsspec
from etils import epath

from var_jax.paths import is_remote

#: Endings of what Pillow reads without other programs, in any case. A fixed list, since the order
#: of training must not depend on Pillow's version.
# fmt: off
PICTURE_SUFFIXES = (
    ".apng", ".avif", ".bmp", ".dds", ".dib", ".gif", ".ico", ".j2c", ".j2k", ".jfif", ".jp2",
    ".jpc", ".jpe", ".jpeg", ".jpf", ".jpg", ".jpx", ".mpo", ".pbm", ".pcx", ".pfm", ".pgm",
    ".png", ".pnm", ".ppm", ".psd", ".qoi", ".ras", ".rgb", ".rgba", ".sgi", ".tga", ".tif",
    ".tiff", ".webp", ".xbm", ".xpm",
)
_SYSTEM_NAMES = {
    "#recycle", "#snapshot", "$recycle.bin", "@__thumb", "@eadir", "@recently-snapshot",
    "@recycle", "@sharebin", "@snapshots", "@tmp", "__macosx", "__pycache__", "desktop.ini",
    "ehthumbs.db", "found.000", "lost+found", "network trash folder", "recycler",
    "system volume information", "temporary items", "thumbs.db",
    "icon\r",
}
# fmt: on
_TRAIN = {"train", "training"}
_OTHER_SPLITS = {"dev", "eval", "evaluation", "test", "testing", "val", "valid", "validation"}
_FILLERS = {"data", "image", "images", "img", "imgs", "pictures", "set", "split"}
#: Names of the folder of a split, in any case.
SPLIT_FOLDERS = {"train": ("train", "training"), "val": ("val", "valid", "validation")}


def is_hidden(name: str) -> bool:
    """Whether a file or folder belongs to a system or program and not to the data set."""
    return name.startswith(".") or name.lower() in _SYSTEM_NAMES


def is_picture(name: str) -> bool:
    """Whether a file name has the ending of a picture."""
    return name.lower().endswith(PICTURE_SUFFIXES)


def printable(path: str) -> str:
    r"""A path for people: bytes that are not UTF-8 as \xff."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def same_name(name: str) -> str:
    """One spelling (NFC) for names that look the same: macOS decomposes accents, others do not."""
    return unicodedata.normalize("NFC", name)


def ending(name: str) -> str:
    """'.txt' files, or files without ending: how a file that is left out is counted."""
    suffix = os.path.splitext(name)[1].lower()
    return f"{printable(suffix)} files" if suffix else "files without ending"


@dataclasses.dataclass
class Tree:
    """What lies below a folder.

    Attributes:
      folders: names of the folders directly in it, sorted.
      pictures: sorted paths of pictures, relative to the folder.
      left_out: how many of what kind were left out.
    """

    folders: list[str]
    pictures: list[str]
    left_out: collections.Counter[str]


def list_folder(folder: epath.PathLike, *, deep: bool) -> Tree:
    """Lists a folder; links are followed, each real folder once.

    Args:
      folder: local or gs:// folder.
      deep: also what lies in the folders below; otherwise `folders` says that they are there.

    Raises:
      ValueError: a folder that cannot be listed, so that its pictures would be missing.
    """
    folder = os.fspath(folder)
    tree = Tree([], [], collections.Counter())
    if is_remote(folder):
        _list_remote(folder, deep, tree)
    else:
        _list_local(folder, deep, tree)
    tree.folders.sort()
    tree.pictures.sort()
    return tree


def _list_local(root: str, deep: bool, tree: Tree) -> None:
    seen = {_identity(os.stat(root))}
    waiting = [""]
    while waiting:
        below = waiting.pop()
        folder = os.path.join(root, below)
        try:
            with os.scandir(folder) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            raise _cannot_list(folder, error) from error
        for entry in found:
            if is_hidden(entry.name):
                tree.left_out["hidden or system files and folders"] += 1
                continue
            path = os.path.join(below, entry.name)
            kind = _kind(entry)
            if kind == "folder":
                if not below:
                    tree.folders.append(entry.name)
                if not deep:
                    continue
                identity = _identity(entry.stat())
                if identity in seen and identity[1]:
                    tree.left_out["links to folders that are in it already"] += 1
                    continue
                seen.add(identity)
                waiting.append(path)
            elif kind != "file":
                tree.left_out[kind] += 1
            elif is_picture(entry.name):
                tree.pictures.append(path)
            else:
                tree.left_out[ending(entry.name)] += 1


def _kind(entry: os.DirEntry[str]) -> str:
    """'folder' or 'file', links followed, or what else it is."""
    try:
        if entry.is_dir():
            return "folder"
        if entry.is_file():
            return "file"
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise _cannot_list(entry.path, error) from error
    return "broken links" if entry.is_symlink() else "pipes and devices"


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _cannot_list(path: str, error: OSError) -> ValueError:
    return ValueError(
        f"{printable(path)} cannot be listed ({error.strerror}), so its pictures would be missing; "
        "make it readable or remove it."
    )


def _list_remote(root: str, deep: bool, tree: Tree) -> None:
    system = fsspec.filesystem("gs")
    # The listing itself says what is a folder: asking for each name would take minutes.
    found = (system.find if deep else system.ls)(root, detail=True)
    entries = found.values() if deep else found
    prefix = root.removeprefix("gs://").rstrip("/") + "/"
    folders = set()
    for entry in entries:
        name = entry["name"].removeprefix(prefix)
        parts = name.rstrip("/").split("/")
        if not parts[0] or entry["name"].rstrip("/") + "/" == prefix:
            continue  # The folder's own marker.
        if any(is_hidden(part) for part in parts):
            tree.left_out["hidden or system files and folders"] += 1
            continue
        folder = entry["type"] == "directory" or name.endswith("/")
        folders.update(parts[:1] if folder or len(parts) > 1 else [])
        if folder:
            continue
        if is_picture(parts[-1]):
            tree.pictures.append(name)
        else:
            tree.left_out[ending(parts[-1])] += 1
    tree.folders += folders


def describe(left_out: collections.Counter[str]) -> str:
    """E.g. '.txt files (3), broken links (1)'; the most frequent first."""
    return ", ".join(f"{kind} ({count})" for kind, count in left_out.most_common())


def check_names(names: Sequence[str], root: str) -> None:
    """Checks that folder names can be class names.

    Raises:
      ValueError: a name that is not UTF-8, or two names that look the same.
    """
    by_look: dict[str, str] = {}
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise ValueError(
                f"The folder {printable(name)!r} of {printable(root)} has a name that is not "
                "UTF-8; rename it."
            ) from None
        other = by_look.setdefault(same_name(name), name)
        if other != name:
            raise ValueError(
                f"{printable(root)} has two folders that look like {same_name(name)!r} (composed "
                "and decomposed accents); put their pictures into one."
            )


def check_not_splits(pictures: dict[str, Sequence[str]], root: str) -> None:
    """Checks that folders are classes, and neither splits nor one folder above the classes.

    Args:
      pictures: of each folder, the pictures below it, relative to it.
      root: the folder that holds them.

    Raises:
      ValueError: they are not.
    """
    words = {name: set(re.findall("[a-z]+", name.lower())) for name in pictures}
    splits = _TRAIN | _OTHER_SPLITS
    exact = [n for n, w in words.items() if w & splits and w <= splits | _FILLERS]
    nested = all(os.sep in f for files in pictures.values() for f in files)
    roles = {bool(words[name] & _TRAIN) for name in exact}
    loose = all(w & splits for w in words.values())
    if len(exact) == len(pictures) or len(roles) == 2 or (loose and nested):
        shown = ", ".join(exact or pictures)
        raise ValueError(
            f"{printable(root)} holds splits and not classes ({shown}); give the folder of one "
            "split, or if these are classes, name all of them as class_names."
        )
    if len(pictures) == 1 and nested:
        (name,) = pictures
        raise ValueError(
            f"{printable(root)} holds one folder, {name!r}, with folders in it, so the classes "
            f"seem to lie one level lower; give {printable(os.path.join(root, name))}, or if it is "
            "a class, name it as class_names."
        )


def find_split(root: epath.PathLike, folders: Sequence[str], split: str) -> str | None:
    """The name of the folder of a split among the `folders` of `root`, if there is one.

    Raises:
      ValueError: there are two.
    """
    names = SPLIT_FOLDERS.get(split, (split.lower(),))
    found = [name for name in folders if name.lower() in names]
    if len(found) > 1:
        raise ValueError(
            f"{root} has the folders {' and '.join(found)}, which both could be the split "
            f"{split!r}; rename or remove one."
        )
    return found[0] if found else None
