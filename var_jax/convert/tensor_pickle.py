"""An interpreter for the pickles inside PyTorch files that can build tensors and nothing else.

The standard unpickler runs whatever callable a file names. This one never calls anything that
a file names: each global stands for a symbol, the few reductions that PyTorch writes for tensors
are interpreted here, and every other object is a placeholder. It is no `pickle.Unpickler` with an
allow-list, because that hashes whatever key a file builds (a nested tuple of 400 bytes takes for
ever) and reserves memory for whatever place in its memo a file names (32 GB for five bytes).
"""

from __future__ import annotations

import dataclasses
import pickletools
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np

from var_jax.convert.pickle_symbols import Placeholder, RefusedPickle, Symbol, symbol

_MAX_DIMENSIONS = 32  # NumPy before 2 refuses more.


@dataclasses.dataclass(frozen=True)
class StorageId:
    """A storage of the file: `numel` elements of `dtype` under `key`.

    dtype is None for untyped storages, whose numel counts bytes.
    """

    key: str
    dtype: np.dtype | None
    numel: int


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """A strided view of a storage, in elements, checked to lie inside it."""

    storage: StorageId
    dtype: np.dtype
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def load(stream: BinaryIO, on_tensor: Callable[[TensorSpec], Any]) -> Any:
    """Reads one pickle from `stream` and leaves it just behind the pickle.

    Args:
      stream: seekable; positioned at the pickle's first byte.
      on_tensor: makes the object that stands for a tensor.

    Returns:
      nested dicts, lists, tuples and plain values; argparse.Namespace as a dict, torch.Size as a
      tuple, torch.device as a string, other objects as Placeholder.

    Raises:
      RefusedPickle: one sentence: what the pickle wants to run, or the one object that it is.
      ValueError: the pickle is damaged.
    """
    try:
        ops = [(op.name, arg) for op, arg, _ in pickletools.genops(stream)]
    except (ValueError, IndexError, UnicodeError) as error:
        raise ValueError(f"its pickle is damaged ({error})") from error
    for name, arg in ops:  # before anything is built
        if name == "GLOBAL":
            symbol(arg)
        elif name not in _HANDLERS:
            raise RefusedPickle(
                f"its pickle uses the opcode {name}, which no file of tensors needs"
            )
    machine = _Machine(on_tensor)
    try:
        for name, arg in ops:
            _HANDLERS[name](machine, arg)
        if isinstance(machine.result, Placeholder):
            raise RefusedPickle(
                f"it is one object of {machine.result.name}, where a dict of tensors is due (such "
                "as state_dict() gives)"
            )
        return machine.result
    except RefusedPickle:
        raise
    except (IndexError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"its pickle is damaged ({type(error).__name__}: {error})") from error


class _Machine:
    """The stack and memo of one pickle."""

    def __init__(self, on_tensor: Callable[[TensorSpec], Any]):
        self.on_tensor = on_tensor
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.result: Any = None

    def pop_mark(self) -> list[Any]:
        # Replaces the stack: callers must look it up afterwards.
        items, self.stack = self.stack, self.marks.pop()
        return items

    def top(self, kind: type) -> Any:
        """The object on top, or None if it is a placeholder, which takes in nothing."""
        if isinstance(self.stack[-1], Placeholder):
            return None
        if not isinstance(self.stack[-1], kind):
            raise TypeError(f"expected a {kind.__name__}")
        return self.stack[-1]

    # Containers.

    def set_items(self, items: list[Any]) -> None:
        if (target := self.top(dict)) is not None:
            _update(target, zip(items[::2], items[1::2], strict=True))

    def set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.set_items([key, value])

    def append(self, items: list[Any]) -> None:
        if (target := self.top(list)) is not None:
            target.extend(items)

    def build(self) -> None:
        # OrderedDict carries `_metadata` here, which nobody needs; a namespace its attributes.
        state = self.stack.pop()
        target = self.top(dict)
        if isinstance(target, _Namespace) and isinstance(state, dict):
            target.update(state)

    def make_set(self, frozen: bool) -> None:
        """A set is a placeholder: to hash what a file builds may take for ever."""
        if frozen:
            self.pop_mark()
        self.stack.append(Placeholder("set"))

    def add_items(self) -> None:
        self.pop_mark()
        if self.top(Placeholder) is not None:
            raise TypeError("expected a set")

    # What PyTorch stores.

    def persistent(self) -> None:
        tag, storage_type, key, _, numel, *_ = self.stack.pop()
        if tag == "storage" and _is(storage_type, "object"):
            self.stack.append(Placeholder(storage_type.name))
            return
        if tag != "storage" or not _is(storage_type, "storage"):
            raise RefusedPickle(f"it refers to an external object {tag!r} that is not a storage")
        self.stack.append(StorageId(str(key), storage_type.dtype, _count(numel)))

    def reduce(self) -> None:
        args, function = self.stack.pop(), self.stack.pop()
        self.stack.append(self.call(function, args))

    def new_with_keywords(self) -> None:
        self.stack.pop()
        self.reduce()

    def call(self, function: Any, args: Any) -> Any:
        if not isinstance(function, Symbol | Placeholder) or not isinstance(args, tuple):
            raise RefusedPickle("it calls something that is not a known constructor")
        if isinstance(function, Placeholder) or function.kind == "object":
            return Placeholder(function.name)
        kind = function.kind
        if kind in ("tensor", "tensor_v3"):
            value = self.tensor(kind, args)
        elif kind == "subclass" and getattr(args[0], "kind", None) in ("tensor", "tensor_v3"):
            value = self.tensor(args[0].kind, args[2])
        elif kind == "parameter":
            value = args[0]
        elif kind == "defaultdict":
            value = _update({}, args[1] if len(args) > 1 else {})
        elif kind == "dict":
            value = _update({}, args[0] if args else {})
        elif kind == "namespace" and not args:
            value = _Namespace()
        elif kind == "size":
            value = tuple(args[0])
        elif kind == "device":
            value = ":".join(str(arg) for arg in args)
        else:
            raise RefusedPickle(f"it calls a {kind} with {len(args)} arguments")
        return value

    def tensor(self, kind: str, args: tuple[Any, ...]) -> Any:
        storage, offset, shape, strides = args[:4]
        if isinstance(storage, Placeholder) or (kind == "tensor_v3" and _is(args[6], "object")):
            return Placeholder("a tensor of an unknown type")
        if not isinstance(storage, StorageId):
            raise TypeError("a tensor without a storage")
        dtype, numel = storage.dtype, storage.numel
        if kind == "tensor_v3":
            if not _is(args[6], "dtype"):
                raise TypeError("a tensor without a dtype")
            dtype = args[6].dtype
            numel = storage.numel // dtype.itemsize
        if dtype is None:
            raise TypeError("a tensor without a dtype")
        offset, shape, strides = _count(offset), _counts(shape), _counts(strides)
        if len(shape) != len(strides) or len(shape) > _MAX_DIMENSIONS:
            raise ValueError(
                f"a tensor claims {len(shape)} sizes and {len(strides)} strides; at most "
                f"{_MAX_DIMENSIONS} of each, and as many of one as of the other, are accepted"
            )
        if 0 not in shape:
            last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
            if last >= numel:
                raise ValueError(
                    f"a tensor of shape {shape} reaches element {last} of a storage that has "
                    f"{numel}"
                )
        return self.on_tensor(TensorSpec(storage, dtype, offset, shape, strides))


class _Namespace(dict):
    """argparse.Namespace, as a dict."""


def _update(target: dict, pairs: Any) -> dict:
    # Only keys that hash in constant time: nested tuples can be made to take for ever.
    for key, value in pairs.items() if isinstance(pairs, dict) else pairs:
        if isinstance(key, Placeholder | Symbol):
            key = f"{key.name} {len(target)}"
        elif isinstance(key, tuple) and all(isinstance(k, str | int | float) for k in key):
            key = str(key)
        elif not isinstance(key, str | int | float | bytes | None):
            raise ValueError(f"a dict has a key of type {type(key).__name__}")
        target[key] = value
    return target


def _is(value: Any, kind: str) -> bool:
    return isinstance(value, Symbol) and value.kind == kind


def _count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**62:
        raise ValueError(f"a size, stride or offset is {value!r}")
    return value


def _counts(values: Any) -> tuple[int, ...]:
    if not isinstance(values, tuple):
        raise ValueError(f"a shape is {values!r}")
    return tuple(_count(value) for value in values)


def _push(machine: _Machine, value: Any) -> None:
    machine.stack.append(value)


def _mark(machine: _Machine, _: Any) -> None:
    machine.marks.append(machine.stack)
    machine.stack = []


def _tuple(n: int) -> Callable[[_Machine, Any], None]:
    def handler(machine: _Machine, _: Any) -> None:
        items = tuple(machine.stack[-n:])
        if len(items) < n:
            raise IndexError("stack underflow")
        del machine.stack[-n:]
        machine.stack.append(items)

    return handler


def _memoize(machine: _Machine, index: int | None) -> None:
    machine.memo[len(machine.memo) if index is None else index] = machine.stack[-1]


def _stack_global(machine: _Machine, _: Any) -> None:
    attribute, module = machine.stack.pop(), machine.stack.pop()
    machine.stack.append(symbol(f"{module} {attribute}"))


def _stop(machine: _Machine, _: Any) -> None:
    machine.result = machine.stack.pop()


def _plain(method: Callable[[_Machine], None]) -> Callable[[_Machine, Any], None]:
    return lambda machine, _: method(machine)


_HANDLERS: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": lambda machine, _: None,
    "FRAME": lambda machine, _: None,
    "GLOBAL": lambda machine, name: machine.stack.append(symbol(name)),
    "STACK_GLOBAL": _stack_global,
    "MARK": _mark,
    "POP": lambda machine, _: machine.stack.pop(),
    "STOP": _stop,
    "NONE": lambda machine, _: machine.stack.append(None),
    "NEWTRUE": lambda machine, _: machine.stack.append(True),
    "NEWFALSE": lambda machine, _: machine.stack.append(False),
    "EMPTY_TUPLE": lambda machine, _: machine.stack.append(()),
    "EMPTY_LIST": lambda machine, _: machine.stack.append([]),
    "EMPTY_DICT": lambda machine, _: machine.stack.append({}),
    "TUPLE": lambda machine, _: _push(machine, tuple(machine.pop_mark())),
    "TUPLE1": _tuple(1),
    "TUPLE2": _tuple(2),
    "TUPLE3": _tuple(3),
    "SETITEM": _plain(_Machine.set_item),
    "SETITEMS": lambda machine, _: machine.set_items(machine.pop_mark()),
    "APPEND": lambda machine, _: machine.append([machine.stack.pop()]),
    "APPENDS": lambda machine, _: machine.append(machine.pop_mark()),
    "BUILD": _plain(_Machine.build),
    "REDUCE": _plain(_Machine.reduce),
    "NEWOBJ": _plain(_Machine.reduce),
    "NEWOBJ_EX": _plain(_Machine.new_with_keywords),
    "EMPTY_SET": lambda machine, _: machine.make_set(frozen=False),
    "FROZENSET": lambda machine, _: machine.make_set(frozen=True),
    "ADDITEMS": _plain(_Machine.add_items),
    "BINPERSID": _plain(_Machine.persistent),
    "MEMOIZE": _memoize,
}
for _name in (
    *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINSTRING", "SHORT_BINSTRING"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
):
    _HANDLERS[_name] = _push
for _name in ("PUT", "BINPUT", "LONG_BINPUT"):
    _HANDLERS[_name] = _memoize
for _name in ("GET", "BINGET", "LONG_BINGET"):
    _HANDLERS[_name] = lambda machine, index: machine.stack.append(machine.memo[index])
