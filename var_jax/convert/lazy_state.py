"""Named arrays that stay in their file until they are read.

Readers of checkpoint files build a `LazyState`; conversions walk it one tensor at a time, so
that peak memory is near one tensor over what the result needs.
"""

from __future__ import annotations

import dataclasses
import io
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

#: Segments of names that come from wrappers: DataParallel, torch.compile, FSDP, activation
#: checkpointing, Lightning Fabric.
WRAPPERS = frozenset(
    (
        *("module", "_orig_mod", "_fsdp_wrapped_module"),
        *("_checkpoint_wrapped_module", "_forward_module"),
    )
)
# A full optimizer state of the largest model has under 10,000 containers; shared references can
# make a small file unfold into any number.
_MAX_CONTAINERS = 200_000
_MAX_DEPTH = 50
_UNSAFE = re.compile(r"[^\w. -]|\.\.")


@dataclasses.dataclass(frozen=True)
class LazyTensor:
    """An array described but not loaded.

    Attributes:
      shape: its shape.
      dtype: its NumPy dtype (bfloat16 and float8 from ml_dtypes).
      load: reads the array from its file.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    load: Callable[[], np.ndarray] = dataclasses.field(repr=False, compare=False)

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the array once read."""
        return self.size * self.dtype.itemsize

    def read(self) -> np.ndarray:
        """The array, C-contiguous, freshly read at every call."""
        return self.load()


class LazyState(Mapping[str, LazyTensor]):
    """The tensors of a checkpoint file by name, and the plain values beside them.

    The segments that wrappers add to names (see WRAPPERS) are removed. The file behind it stays
    open until `close`, or the end of a `with` block.

    Attributes:
      path: the file.
      tree: the file's nested dicts as they are: LazyTensor leaves and plain values (numbers,
        strings, lists, tuples, None).
    """

    def __init__(
        self,
        path: str,
        tree: Mapping[Any, Any],
        close: Callable[[], None] = lambda: None,
    ):
        self.path = str(path)
        self.tree = tree
        self._close = close
        self._groups: dict[str, dict[str, LazyTensor]] = {}
        self._containers = 0
        self._collect(tree, "", 0)
        self._tensors: dict[str, LazyTensor] = {}
        for group, tensors in self._groups.items():
            for name, tensor in tensors.items():
                full = f"{group}.{name}" if group else name
                if full in self._tensors:
                    raise ValueError(f"{self.path} holds two tensors under the name {full!r}.")
                self._tensors[full] = tensor

    def _collect(self, node: Mapping[Any, Any], group: str, depth: int) -> None:
        self._containers += 1
        if depth > _MAX_DEPTH or self._containers > _MAX_CONTAINERS:
            raise ValueError(
                f"{self.path} nests its dicts deeper than {_MAX_DEPTH} levels or unfolds into more "
                f"than {_MAX_CONTAINERS} of them, so it is no checkpoint; nothing was read."
            )
        own: dict[str, LazyTensor] = {}
        for key, value in node.items():
            if isinstance(value, LazyTensor):
                name = strip_wrappers(check_name(str(key), self.path))
                if name in own:
                    raise ValueError(
                        f"{self.path} holds {name!r} twice once the segments of wrappers are "
                        "removed."
                    )
                own[name] = value
        if own:
            if group in self._groups:
                raise ValueError(f"{self.path} holds two dicts under the name {group!r}.")
            self._groups[group] = own
        for key, value in node.items():
            children = value
            if isinstance(value, list | tuple):
                children = dict(enumerate(value))
            if isinstance(children, Mapping):
                key = _UNSAFE.sub("_", str(key)) or "_"
                self._collect(children, f"{group}.{key}" if group else key, depth + 1)

    def groups(self) -> dict[str, LazyState]:
        """The dicts of the file that hold tensors themselves, by dotted path.

        A bare state dict has the one group ''; the official trainer's files have
        'trainer.var_wo_ddp', 'trainer.vae_local' and groups of the optimizer's. The groups
        share this state's open file.
        """
        return {name: LazyState(self.path, tensors) for name, tensors in self._groups.items()}

    def __getitem__(self, name: str) -> LazyTensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def close(self) -> None:
        """Closes the file; tensors cannot be read afterwards."""
        self._close()

    def __enter__(self) -> LazyState:
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"LazyState({self.path!r}, {len(self)} tensors, groups {sorted(self._groups)})"


def strip_wrappers(name: str) -> str:
    """Removes every segment that a wrapper adds, but for the last one."""
    *segments, last = name.split(".")
    return ".".join([*(s for s in segments if s not in WRAPPERS), last])


def check_name(name: str, path: str) -> str:
    """Refuses names that could leave a folder if they became file names.

    Raises:
      ValueError: the name is empty or holds a slash, a backslash, '..' or a control character.
    """
    escapes = "/" in name or "\\" in name or ".." in name
    if not name or escapes or not name.isprintable():
        raise ValueError(
            f"{path} holds the name {name!r}, which is no parameter name (slashes, '..' and "
            "control characters are refused); nothing was read."
        )
    return name


def read_exactly(file: io.BufferedIOBase, start: int, count: int, path: str) -> np.ndarray:
    """`count` bytes at `start` as a uint8 array, or ValueError where the file ends before."""
    buffer = np.empty(count, np.uint8)
    view = memoryview(buffer)
    file.seek(start)
    done = 0
    while done < count:
        got = file.readinto(view[done:])
        if not got:
            raise ValueError(f"{path} ends {count - done} bytes too early; copy it again.")
        done += got
    return buffer
