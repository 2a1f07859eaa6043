"""Checkpoints in several files, with an index that says which tensor lies in which.

The layout of Hugging Face's libraries: `model.safetensors.index.json` holds `weight_map`, from
names to the files beside it.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable

from etils import epath

from var_jax.convert.lazy_state import LazyState, LazyTensor

INDEX = ".index.json"
_WEIGHTS = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")
_PART = re.compile(r".*-(\d+)-of-(\d+)\.\w+")


def find(path: epath.PathLike) -> epath.Path:
    """The one file to open: an index, or a file that is whole by itself.

    Args:
      path: a file of weights, one of several parts, an index, or a folder with one of them.

    Raises:
      FileNotFoundError, ValueError: there is none, there are several, or a part without an index.
    """
    place = epath.Path(path)
    if place.is_dir():
        files = sorted(place.iterdir(), key=lambda file: file.name)
        found = [file for file in files if file.name.endswith(INDEX)]
        found = found or [file for file in files if file.suffix in _WEIGHTS]
        if len(found) != 1:
            raise ValueError(
                f"The folder {path} holds {len(found) or 'no'} files of weights or indices"
                f"{': ' * bool(found)}{', '.join(f.name for f in found[:5])}; give the path of one."
            )
        place = found[0]
    if not place.exists():
        raise FileNotFoundError(f"There is no file {path}; give the path of a checkpoint file.")
    if place.name.endswith(INDEX) or place.suffix not in _WEIGHTS:
        return place
    for index in place.parent.glob(f"*{INDEX}"):
        if place.name in read_index(index).values():
            return index
    part = _PART.fullmatch(place.name)
    if part and int(part[2]) > 1:
        raise ValueError(
            f"{place} is part {int(part[1])} of {int(part[2])}, and the index that names them all "
            f"(*{INDEX}) is not beside it; copy the whole folder."
        )
    return place


def read_index(path: epath.Path) -> dict[str, str]:
    """Tensor name -> file name.

    Raises:
      ValueError: it is no index, or names a file elsewhere.
    """
    try:
        names = json.loads(path.read_text())["weight_map"]
        sound = bool(names) and all(isinstance(file, str) for file in names.values())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        sound = False
    if not sound:
        raise ValueError(f"{path} is no index of a checkpoint in parts: it has no 'weight_map'.")
    for file in names.values():
        if not file.isprintable() or "/" in file or "\\" in file or file in ("", ".", ".."):
            raise ValueError(f"{path} names the file {file!r}, which is not beside it.")
    return names


def open_parts(index: epath.Path, open_file: Callable[[epath.Path], LazyState]) -> LazyState:
    """The tensors of all parts as one state.

    Args:
      index: of `find`.
      open_file: opens one part.

    Raises:
      FileNotFoundError: parts are missing.
      ValueError: the index and the parts do not agree.
    """
    names = read_index(index)
    files = sorted(set(names.values()))
    missing = [file for file in files if not (index.parent / file).exists()]
    if missing:
        raise FileNotFoundError(
            f"{index} names {len(files)} files, of which {len(missing)} are not beside it: "
            f"{', '.join(missing[:5])}; copy them too."
        )
    tree: dict[str, LazyTensor] = {}
    with contextlib.ExitStack() as stack:
        for file in files:
            state = stack.enter_context(open_file(index.parent / file))
            there = {name: t for name, t in state.tree.items() if isinstance(t, LazyTensor)}
            listed = {name for name, place in names.items() if place == file}
            for odd in sorted(listed ^ there.keys()):
                raise ValueError(
                    f"{index} and {file} do not belong together: {odd!r} is "
                    f"{'not in it' if odd in listed else 'in it and not listed'}; copy all parts "
                    "again."
                )
            tree |= there
        close = stack.pop_all().close
    return LazyState(str(index), tree, close)
