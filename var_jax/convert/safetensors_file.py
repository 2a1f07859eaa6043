"""Reading and writing safetensors files one tensor at a time.

The format (github.com/huggingface/safetensors): eight bytes of header length, a JSON header of
names, dtypes, shapes and byte ranges, then the data. Written here, not taken from the package
`safetensors`, so that bfloat16 needs no framework, gs:// paths work, and no more than one tensor is
in memory when a file is written.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from var_jax.convert.lazy_state import LazyState, LazyTensor, check_name, read_exactly
from var_jax.paths import replacing

_MAX_HEADER_BYTES = 100 * 10**6  # the limit of the format's own library
_DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype(np.bool_),
}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}


def looks_like(head: bytes, size: int) -> bool:
    """Whether a file of `size` bytes that begins with `head` can be a safetensors file."""
    return (
        len(head) > 8
        and head[8:9] == b"{"
        and int.from_bytes(head[:8], "little") <= min(size - 8, _MAX_HEADER_BYTES)
    )


def open_stream(file: BinaryIO, size: int, path: str) -> LazyState:
    """The tensors of an open safetensors file, unread; the state owns `file`.

    Raises:
      ValueError: one sentence: what is wrong with the header.
    """
    file.seek(0)
    header_size = int.from_bytes(file.read(8), "little")
    try:
        text = file.read(header_size).decode("utf-8")
        header = json.loads(text, object_pairs_hook=_without_repeats)
        metadata = header.pop("__metadata__", {})
    except (ValueError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} has a damaged safetensors header ({error}).") from error
    start = 8 + header_size
    tree: dict[str, LazyTensor] = {}
    ranges = []
    for name, entry in header.items():
        tree[check_name(name, path)] = _entry(file, name, entry, start, size - start, path)
        ranges.append(tuple(entry["data_offsets"]))
    position = 0
    for begin, end in (*sorted(ranges), (size - start, size - start)):
        if begin != position:
            raise ValueError(
                f"{path} has a header that does not describe its data byte by byte (it goes on at "
                f"{begin} where {position} is due), so it is cut off, or two files were joined."
            )
        position = end
    state = LazyState(path, tree, file.close)
    state.tree = {**tree, "__metadata__": metadata} if metadata else tree
    return state


def _without_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    if len(dict(pairs)) != len(pairs):
        raise ValueError("a name stands there twice")
    return dict(pairs)


def _entry(
    file: BinaryIO, name: str, entry: Any, start: int, available: int, path: str
) -> LazyTensor:
    try:
        dtype = _DTYPES[entry["dtype"]]
        shape = tuple(entry["shape"])
        begin, end = entry["data_offsets"]
        numbers = (*shape, begin, end)
        sound = all(type(n) is int and n >= 0 for n in numbers) and len(shape) <= 32
        sound = sound and begin + math.prod(shape) * dtype.itemsize == end <= available
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} describes {name!r} wrongly: {entry!r}.") from error
    if not sound:
        raise ValueError(
            f"{path} describes {name!r} with a shape and byte range that do not agree with each "
            f"other or with the file: {entry!r}."
        )

    def load() -> np.ndarray:
        return read_exactly(file, start + begin, end - begin, path).view(dtype).reshape(shape)

    return LazyTensor(shape, dtype, load)


def write(
    path: str,
    tensors: Mapping[str, LazyTensor | np.ndarray],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes a safetensors file, holding one tensor at a time.

    Args:
      path: local or gs:// path; overwritten only once the new file is complete.
      tensors: arrays or lazy tensors by name.
      metadata: strings for the header.

    Raises:
      ValueError: an element type that the format does not have.
    """
    header: dict[str, object] = {}
    if metadata:
        header["__metadata__"] = dict(metadata)
    position = 0
    # Largest items first, so that every tensor lies at a multiple of its item size.
    names = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    for name in names:
        tensor = tensors[name]
        check_name(name, str(path))
        code = _CODES.get(np.dtype(tensor.dtype))
        if code is None:
            raise ValueError(f"{name} has dtype {tensor.dtype}, which safetensors does not have.")
        nbytes = math.prod(tensor.shape) * tensor.dtype.itemsize
        header[name] = {
            "dtype": code,
            "shape": list(tensor.shape),
            "data_offsets": [position, position + nbytes],
        }
        position += nbytes
    encoded = json.dumps(header, separators=(",", ":")).encode("utf-8")
    encoded += b" " * (-len(encoded) % 8)
    with replacing(path) as file:
        file.write(len(encoded).to_bytes(8, "little"))
        file.write(encoded)
        for name in names:
            tensor = tensors[name]
            array = tensor.read() if isinstance(tensor, LazyTensor) else np.asarray(tensor)
            file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
