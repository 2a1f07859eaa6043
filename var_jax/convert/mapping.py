"""Tables that map parameters here to tensors of the official PyTorch files, and back.

A table is a list of `Row`s. With the shapes of our parameters it says everything: the names and
shapes of all tensors there, how to turn one into the other, and what is missing or too much.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from var_jax.convert.lazy_state import LazyTensor

_MAX_LISTED = 20


@dataclasses.dataclass(frozen=True)
class Row:
    """One kind of parameter.

    Attributes:
      ours: path here, names joined by '/'; `{i}` stands for a number.
      theirs: name there, with the same `{i}`. `{stack}` is the index along the leading axis of
        our array, which holds that many tensors of theirs.
      axes: 'axes there -> axes here', each axis a letter, 1 an axis of size one, and
        parentheses around axes that are merged there, such as '(s n h) c -> c s n h'. The
        stacked axis is left out.
      parts: words of which `{part}` in `theirs` stands for one after the other: tensors there that
        are equal parts of our last axis.
    """

    ours: str
    theirs: str
    axes: str
    parts: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Slot:
    """Where one tensor of theirs belongs.

    Attributes:
      path: of our parameter, names joined by '/'.
      index: along the leading axis of our array, or None if the tensor is all of it.
      shape: of the tensor there.
      split: its shape with merged axes taken apart.
      order: which axis of `split` each of our axes is.
      target: shape of our array (of its part at `index` and `span`).
      span: of our last axis, or None if the tensor is all of it.
    """

    path: str
    index: int | None
    shape: tuple[int, ...]
    split: tuple[int, ...]
    order: tuple[int, ...]
    target: tuple[int, ...]
    span: slice | None = None

    def place(self, array: np.ndarray) -> np.ndarray:
        """Where the tensor lies in our array: a view."""
        part = array if self.index is None else array[self.index]
        return part if self.span is None else part[..., self.span]

    def to_ours(self, tensor: np.ndarray) -> np.ndarray:
        """Their tensor as ours: a view."""
        return tensor.reshape(self.split).transpose(self.order).reshape(self.target)

    def to_theirs(self, array: np.ndarray) -> np.ndarray:
        """Our array, or our stacked array, as their tensor: contiguous."""
        part = self.place(array).reshape([self.split[i] for i in self.order])
        return np.ascontiguousarray(part.transpose(np.argsort(self.order))).reshape(self.shape)


def expand(
    rows: Sequence[Row], abstract: PyTree, rename: Callable[[str], str] = str
) -> dict[str, Slot]:
    """Their names and where each belongs.

    Args:
      rows: the table.
      abstract: our parameters, nested dicts of anything with a shape.
      rename: from a name of the table to that in the file, where another model is named alike.

    Raises:
      ValueError: one of our parameters has no row or two, so it would be lost.
    """
    slots: dict[str, Slot] = {}
    for path, leaf in flatten(abstract).items():
        found = [(row, m) for row in rows if (m := _pattern(row.ours).fullmatch(path))]
        if len(found) != 1:
            raise ValueError(
                f"The parameter {path} has {len(found)} places in the official files instead of "
                "one; a model with this parameter cannot be exchanged with them."
            )
        row, numbers = found[0][0], found[0][1].groupdict()
        stacked = "{stack}" in row.theirs
        shape = leaf.shape[1:] if stacked else leaf.shape
        for index in range(leaf.shape[0]) if stacked else [None]:
            for place, part in enumerate(row.parts or ("",)):
                name = row.theirs.format(stack=index, part=part, **numbers)
                slot = _slot(path, index, row.axes, tuple(shape), place, len(row.parts))
                slots[rename(name)] = slot
    return slots


def check(
    state: Mapping[str, LazyTensor], slots: Mapping[str, Slot], buffers: Sequence[str], what: str
) -> None:
    """Compares names, shapes and types of a file with what a model needs; reads no tensor.

    Args:
      state: the tensors of the file.
      slots: of `expand`.
      buffers: regular expressions of names that hold no parameter; they may be there or not.
      what: names the file in the message.

    Raises:
      ValueError: lists what is missing, what is unexpected and what has another shape.
    """
    missing = [f"{name} {list(slot.shape)}" for name, slot in slots.items() if name not in state]
    unexpected = [
        f"{name} {list(tensor.shape)}"
        for name, tensor in state.items()
        if name not in slots and not any(re.fullmatch(pattern, name) for pattern in buffers)
    ]
    reshaped = [
        f"{name} is {list(state[name].shape)} instead of {list(slot.shape)}"
        for name, slot in slots.items()
        if name in state and tuple(state[name].shape) != slot.shape
    ]
    retyped = [
        f"{name} is of {state[name].dtype}"
        for name in slots
        if name in state and not jax.dtypes.issubdtype(state[name].dtype, np.floating)
    ]
    problems = [
        f"{title}: {_listed(names)}"
        for title, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of the wrong shape", reshaped),
            ("of no floating point type", retyped),
        )
        if names
    ]
    if problems:
        raise ValueError(f"{what} does not fit. {'; '.join(problems)}.")


def read(
    state: Mapping[str, LazyTensor],
    slots: Mapping[str, Slot],
    abstract: PyTree,
    what: str = "The file",
) -> PyTree:
    """Our parameters from a checked file, one tensor at a time.

    Raises:
      ValueError: a value is no finite number; `what` names the file in the message.

    Returns:
      nested dicts of float32 numpy arrays like `abstract`, aligned so that JAX can take them
      on the CPU without a copy.
    """
    arrays = {path: _aligned(leaf.shape) for path, leaf in flatten(abstract).items()}
    for name, slot in slots.items():
        target = slot.place(arrays[slot.path])
        np.copyto(target, slot.to_ours(state[name].read()), casting="unsafe")
        if not np.isfinite(target).all():
            raise ValueError(f"{what} holds {name!r} with values that are no finite numbers.")
    return unflatten(arrays)


def _aligned(shape: tuple[int, ...]) -> np.ndarray:
    """An uninitialised float32 array that begins at a multiple of 64 bytes."""
    nbytes = 4 * math.prod(shape)
    buffer = np.empty(nbytes + 64, np.uint8)
    start = -buffer.ctypes.data % 64
    return buffer[start : start + nbytes].view(np.float32).reshape(shape)


def tensors(params: PyTree, slots: Mapping[str, Slot]) -> dict[str, LazyTensor]:
    """Their tensors from our parameters (nested dicts of numpy arrays), made when read."""
    arrays = flatten(params)

    def lazy(slot: Slot) -> LazyTensor:
        array = arrays[slot.path]
        return LazyTensor(slot.shape, array.dtype, functools.partial(slot.to_theirs, array))

    return {name: lazy(slot) for name, slot in slots.items()}


def constant(shape: tuple[int, ...], dtype: Any, make: Callable[[], np.ndarray]) -> LazyTensor:
    """A tensor of theirs that is no parameter of ours, made when read."""
    return LazyTensor(shape, np.dtype(dtype), lambda: make().astype(dtype).reshape(shape))


def shape_of(state: Mapping[str, LazyTensor], name: str, rank: int, what: str) -> tuple[int, ...]:
    """The shape of a tensor that the configuration is read off.

    Raises:
      ValueError: it is missing or has another number of axes.
    """
    if name not in state:
        raise ValueError(f"{what} does not fit. missing: {name}.")
    shape = tuple(state[name].shape)
    if len(shape) != rank or 0 in shape:
        raise ValueError(
            f"{what} does not fit. of the wrong shape: {name} is {list(shape)}, where {rank} axes "
            "of one or more are expected."
        )
    return shape


def flatten(tree: PyTree) -> dict[str, Any]:
    """Leaves by their path, names joined by '/'."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def unflatten(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten` for nested dicts."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *parents, last = path.split("/")
        node = tree
        for name in parents:
            node = node.setdefault(name, {})
        node[last] = leaf
    return tree


@functools.cache
def _pattern(ours: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>\\d+)", re.escape(ours)))


@functools.cache
def _slot(
    path: str, index: int | None, axes: str, target: tuple[int, ...], place: int, parts: int
) -> Slot:
    span = None
    if parts:
        size = target[-1] // parts
        span, target = slice(place * size, (place + 1) * size), (*target[:-1], size)
    there, here = (re.findall(r"\(.*?\)|\w", side) for side in axes.split("->"))
    sizes = {name: n for name, n in zip(here, target, strict=True) if name != "1"}
    groups = [group.strip("()").split() for group in there]
    letters = [name for group in groups for name in group if name != "1"]
    return Slot(
        path,
        index,
        shape=tuple(math.prod(sizes.get(name, 1) for name in group) for group in groups),
        split=tuple(sizes[name] for name in letters),
        order=tuple(letters.index(name) for name in here if name != "1"),
        target=target,
        span=span,
    )


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else ""
    return ", ".join(names[:_MAX_LISTED]) + more
