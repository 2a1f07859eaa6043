"""Reading PyTorch checkpoint files without PyTorch, tensor by tensor.

A `.pth` file is a zip archive: a pickle that describes the tensors, and one uncompressed record
a storage. The pickle goes through `tensor_pickle`, which can build tensors and nothing else;
the records are read when a tensor is. Every size that the file claims is held against the
length of the file before anything of that size is allocated.
"""

from __future__ import annotations

import contextlib
import functools
import io
import struct
import zipfile
import zlib
from typing import Any, BinaryIO

import numpy as np
from etils import epath

from var_jax.convert import safetensors_file, sharded, tensor_pickle
from var_jax.convert.lazy_state import LazyState, LazyTensor, read_exactly
from var_jax.convert.pickle_symbols import RefusedPickle

_MAX_PICKLE_BYTES = 16 * 2**20
_MAX_RECORDS = 100_000
_CHUNK_BYTES = 8 * 2**20
_LEGACY_MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # the pickled magic number
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, name length, extra length


def open_state(path: str, *, legacy: bool = False) -> LazyState:
    """Opens a checkpoint file of PyTorch's (`.pth`, `.pt`) or of safetensors.

    Args:
      path: local or gs:// path of a file, or of a checkpoint in several: its index, its folder or
        one of its parts.
      legacy: also accept the format of PyTorch before 1.6, in which the files of VGG-16 and of
        the FID Inception are still published.

    Returns:
      the file's tensors by name, unread; see LazyState for nested files and prefixes.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: one sentence: what is wrong with the file. Nothing that it names is executed.
    """
    found = sharded.find(path)
    open_file = functools.partial(_open_file, legacy=legacy)
    if found.name.endswith(sharded.INDEX):
        return sharded.open_parts(found, open_file)
    return open_file(found)


def _open_file(path: epath.Path, legacy: bool) -> LazyState:
    file = path.open("rb")
    try:
        head = file.read(64)
        size = file.seek(0, io.SEEK_END)
        if head.startswith(b"PK\x03\x04"):
            state = _open_zip(file, size, str(path))
        elif head.startswith(_LEGACY_MAGIC):
            if not legacy:
                raise ValueError(
                    f"{path} is in PyTorch's format from before version 1.6; load it in PyTorch "
                    "and save it again (torch.save) to get the zip format that is read here."
                )
            state = _open_legacy(file, size, str(path))
        elif safetensors_file.looks_like(head, size):
            state = safetensors_file.open_stream(file, size, str(path))
        else:
            raise ValueError(
                f"{path} is neither a PyTorch zip file nor a safetensors file (it begins with "
                f"{head[:8]!r}); it may be incomplete, or a web page saved by mistake."
            )
    except BaseException:
        file.close()
        raise
    return state


def _open_zip(file: BinaryIO, size: int, path: str) -> LazyState:
    try:
        archive = zipfile.ZipFile(file)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct.error) as error:
        raise ValueError(
            f"{path} is a damaged or truncated zip file ({error}); copy it again."
        ) from error
    records = _checked_records(archive, size, path)
    pickles = [name for name in records if name.rsplit("/", 1)[-1] == "data.pkl"]
    if len(pickles) != 1 or pickles[0].count("/") > 1:
        raise ValueError(
            f"{path} is a zip file without the one data.pkl of PyTorch's format; it holds "
            f"{', '.join(sorted(records)[:5])}."
        )
    folder = pickles[0][: -len("data.pkl")]
    pickle_record = records[pickles[0]]
    if pickle_record.file_size > _MAX_PICKLE_BYTES:
        raise ValueError(
            f"{path} has a data.pkl of {pickle_record.file_size} bytes, more than any file of "
            f"tensors needs ({_MAX_PICKLE_BYTES})."
        )
    summed, sound = _has_sums(file, records.get(folder + "version"), path), set()
    byteorder = records.get(folder + "byteorder")
    if byteorder is not None:
        order = _read_record(file, byteorder, path, 0, min(byteorder.file_size, 16)).tobytes()
        if order != b"little":
            raise ValueError(f"{path} stores its numbers in byte order {order!r}, not 'little'.")

    def on_tensor(spec: tensor_pickle.TensorSpec) -> LazyTensor:
        record = records.get(f"{folder}data/{spec.storage.key}")
        if record is None:
            raise ValueError(f"a tensor refers to the record {spec.storage.key!r}, which is absent")
        _check_storage(spec, record.file_size, size)

        def read_bytes(offset: int, count: int) -> np.ndarray:
            part = _read_record(file, record, path, offset, count)
            if summed and record.filename not in sound:
                _check_sum(file, record, path, part if count == record.file_size else None)
                sound.add(record.filename)
            return part

        return _lazy(spec, read_bytes)

    encoded = _read_record(file, pickle_record, path, 0, pickle_record.file_size)
    if summed:
        _check_sum(file, pickle_record, path, encoded)
    tree = _load_pickle(io.BytesIO(encoded.tobytes()), on_tensor, path)
    return LazyState(path, _as_dict(tree, path), file.close)


def _has_sums(file: BinaryIO, version: zipfile.ZipInfo | None, path: str) -> bool:
    """Whether the file's checksums are meant: PyTorch can be told to leave them out."""
    if version is None or version.file_size > 64:
        return True
    return zlib.crc32(_read_record(file, version, path, 0, version.file_size)) == version.CRC


def _check_sum(
    file: BinaryIO, record: zipfile.ZipInfo, path: str, whole: np.ndarray | None
) -> None:
    """Raises ValueError unless a record, `whole` where it was read, has its checksum."""
    found, start = 0, 0
    while whole is None and start < record.file_size:
        count = min(_CHUNK_BYTES, record.file_size - start)
        found = zlib.crc32(_read_record(file, record, path, start, count), found)
        start += count
    if (found if whole is None else zlib.crc32(whole)) != record.CRC:
        raise ValueError(
            f"{path} is damaged inside {record.filename!r}: its checksum is wrong; copy it again."
        )


def _checked_records(archive: zipfile.ZipFile, size: int, path: str) -> dict[str, zipfile.ZipInfo]:
    infos = archive.infolist()
    if len(infos) > _MAX_RECORDS:
        raise ValueError(f"{path} lists {len(infos)} records, more than any checkpoint has.")
    records: dict[str, zipfile.ZipInfo] = {}
    for info in infos:
        name = info.filename
        parts = name.split("/")
        if name.startswith("/") or "\\" in name or ".." in parts or not name.isprintable():
            raise ValueError(f"{path} has a record named {name!r}, which leaves the archive.")
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 0x1:
            raise ValueError(
                f"{path} has a compressed or encrypted record ({name!r}); PyTorch writes neither."
            )
        if info.file_size != info.compress_size or info.header_offset + info.file_size > size:
            raise ValueError(
                f"{path} claims {info.file_size} bytes for the record {name!r}, more than the "
                f"file's {size} bytes hold."
            )
        if name in records:
            raise ValueError(f"{path} has two records named {name!r}.")
        records[name] = info
    first = min((info.header_offset for info in infos), default=0)
    if first:
        raise ValueError(
            f"{path} begins with {first} bytes that are in none of its records, as if two files "
            "had been joined; copy it again."
        )
    total = sum(info.file_size for info in infos)
    if total > size:
        raise ValueError(f"{path} claims {total} bytes of records in a file of {size} bytes.")
    return records


def _read_record(
    file: BinaryIO, record: zipfile.ZipInfo, path: str, offset: int, count: int
) -> np.ndarray:
    """Bytes [offset, offset + count) of an uncompressed record, as uint8."""
    file.seek(record.header_offset)
    header = file.read(_LOCAL_HEADER.size)
    if len(header) != _LOCAL_HEADER.size or not header.startswith(b"PK\x03\x04"):
        raise ValueError(f"{path} has no record where its index says {record.filename!r} is.")
    _, name_length, extra_length = _LOCAL_HEADER.unpack(header)
    start = record.header_offset + _LOCAL_HEADER.size + name_length + extra_length
    return read_exactly(file, start + offset, count, path)


def _open_legacy(file: BinaryIO, size: int, path: str) -> LazyState:
    """PyTorch's format before 1.6: five pickles, then every storage behind its length."""
    file.seek(0)
    stream = io.BytesIO(file.read(_MAX_PICKLE_BYTES))
    starts: dict[str, int] = {}  # storage key -> first byte, known only after the pickles
    storages: dict[str, tensor_pickle.StorageId] = {}

    def on_tensor(spec: tensor_pickle.TensorSpec) -> LazyTensor:
        _check_storage(spec, size, size)
        if storages.setdefault(spec.storage.key, spec.storage) != spec.storage:
            raise ValueError(f"it describes the storage {spec.storage.key!r} in two ways")

        def read_bytes(offset: int, count: int) -> np.ndarray:
            return read_exactly(file, starts[spec.storage.key] + offset, count, path)

        return _lazy(spec, read_bytes)

    parts = [_load_pickle(stream, on_tensor, path) for _ in range(5)]
    _, version, system, tree, keys = parts
    little = isinstance(system, dict) and system.get("little_endian", True)
    if version != 1001 or not little or not isinstance(keys, list):
        raise ValueError(f"{path} is an unknown variety of PyTorch's old format; save it again.")
    position = stream.tell()
    for key in keys:
        storage = storages.get(key)
        if storage is None:
            raise ValueError(f"{path} lists a storage {key!r} that no tensor uses.")
        count = int(read_exactly(file, position, 8, path).view("<i8")[0])
        if count != storage.numel or position + 8 + count * storage.dtype.itemsize > size:
            raise ValueError(f"{path} is damaged or truncated at byte {position}; copy it again.")
        starts[key] = position + 8
        position += 8 + count * storage.dtype.itemsize
    if missing := sorted(set(storages) - set(starts)):
        raise ValueError(f"{path} does not hold the storages {', '.join(missing[:5])}.")
    return LazyState(path, _as_dict(tree, path), file.close)


def _load_pickle(stream: BinaryIO, on_tensor: Any, path: str) -> Any:
    try:
        return tensor_pickle.load(stream, on_tensor)
    except RefusedPickle as error:
        raise RefusedPickle(f"{path} is refused: {error}; nothing in it was run.") from None
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}.") from None


def _check_storage(spec: tensor_pickle.TensorSpec, available: int, file_size: int) -> None:
    storage = spec.storage
    itemsize = 1 if storage.dtype is None else storage.dtype.itemsize
    if storage.numel * itemsize > available:
        raise ValueError(
            f"the storage {storage.key!r} claims {storage.numel * itemsize} bytes, and "
            f"{available} are there"
        )
    nbytes = spec.dtype.itemsize
    for n in spec.shape:
        nbytes *= n
    # Views with stride 0 may legally repeat elements, but never beyond the whole file.
    if nbytes > max(file_size, 2**16):
        raise ValueError(
            f"a tensor of shape {spec.shape} would take {nbytes} bytes, more than the whole file "
            f"({file_size})"
        )


def _lazy(spec: tensor_pickle.TensorSpec, read_bytes: Any) -> LazyTensor:
    def load() -> np.ndarray:
        itemsize = spec.dtype.itemsize
        if 0 in spec.shape:
            return np.empty(spec.shape, spec.dtype)
        extent = 1 + sum((n - 1) * s for n, s in zip(spec.shape, spec.strides, strict=True))
        flat = read_bytes(spec.offset * itemsize, extent * itemsize).view(spec.dtype)
        view = np.lib.stride_tricks.as_strided(
            flat, spec.shape, tuple(s * itemsize for s in spec.strides), writeable=False
        )
        if view.flags.c_contiguous:
            return flat.reshape(spec.shape)
        return np.ascontiguousarray(view)

    return LazyTensor(spec.shape, spec.dtype, load)


def _as_dict(tree: Any, path: str) -> dict[Any, Any]:
    if isinstance(tree, dict):
        return tree
    if isinstance(tree, list | tuple):
        with contextlib.suppress(TypeError):
            return dict(enumerate(tree))
    raise ValueError(f"{path} holds a single {type(tree).__name__}, not a dict of named tensors.")
