"""ArrayRecord shards: written whole or not at all, with a table of contents written last.

A directory holds shard files and `metadata.json`. The table is written when every shard is in
place, and lists each file with its records and bytes, so a directory without it is unfinished and
one that was copied incompletely is noticed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import resource
import shutil
import struct
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from absl import logging
from etils import epath

from var_jax.data.sources import check_labels
from var_jax.paths import cache_directory, is_remote, replacing

METADATA = "metadata.json"
_IMAGE_HEADER = struct.Struct("<iH")
# Files that a process opens beside the shards: other splits, checkpoints, libraries, sockets.
_OTHER_FILES = 768
_FEWEST_OTHER_FILES = 64


def read_json(path: epath.PathLike) -> Any:
    """Reads a JSON file.

    Raises:
      ValueError: it is damaged.
    """
    try:
        return json.loads(epath.Path(path).read_text())
    except ValueError as error:
        raise ValueError(
            f"{path} is damaged ({error}); copy its directory again, or delete it and make it anew."
        ) from error


def entry_path(shard: epath.PathLike) -> epath.Path:
    """Where a shard's entry is kept until the table of contents is written."""
    shard = epath.Path(shard)
    return shard.with_name(f"{shard.name}.json")


def finished(shard: epath.PathLike) -> dict[str, Any] | None:
    """The entry of a shard that was written and is whole, or None."""
    shard, path = epath.Path(shard), entry_path(shard)
    if not (path.exists() and shard.exists()):
        return None
    entry = read_json(path)
    return entry if shard.stat().length == entry["bytes"] else None


def write_shard(path: epath.PathLike, records: Iterable[bytes], compress: bool) -> dict[str, Any]:
    """Writes one ArrayRecord file atomically; nothing appears at `path` until it is complete.

    Args:
      path: local or gs:// file.
      records: the records, in order.
      compress: off for what is compressed already, such as JPEG files.

    Returns:
      The shard's entry in the table of contents: file, records, bytes.

    Raises:
      ValueError: it cannot be written whole, for example since the disk is full.
    """
    from array_record.python import array_record_module

    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    local = tempfile.gettempdir() if is_remote(path) else os.fspath(path.parent)
    temporary = epath.Path(local) / f"{path.name}.tmp-{os.getpid()}"
    count = 0
    try:
        with _writing(path):
            writer = array_record_module.ArrayRecordWriter(
                os.fspath(temporary), "group_size:1" if compress else "group_size:1,uncompressed"
            )
        try:
            for record in records:
                with _writing(path):
                    writer.write(record)
                count += 1
        except BaseException:
            with contextlib.suppress(RuntimeError):
                writer.close()
            raise
        with _writing(path):
            writer.close()
        size = os.path.getsize(temporary)
        if is_remote(path):
            with replacing(path) as file, open(temporary, "rb") as source:
                shutil.copyfileobj(source, file)
        else:
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return {"file": path.name, "records": count, "bytes": size}


@contextlib.contextmanager
def _writing(path: epath.Path) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # What ArrayRecord raises, whatever happened.
        raise ValueError(f"{path} cannot be written ({error}); is the disk full?") from error


def shard_name(prefix: str, number: int, count: int) -> str:
    """E.g. 'train-00003-of-01000.array_record'."""
    return f"{prefix}-{number:05d}-of-{count:05d}.array_record"


def read_table(
    directory: epath.PathLike, kind: str, made_by: str, keys: Sequence[str] = ()
) -> dict[str, Any]:
    """Reads and checks a directory's table of contents.

    Args:
      directory: local or gs:// directory.
      kind: what it must hold, 'images' or 'tokens'.
      made_by: the command that makes such a directory, for the messages.
      keys: what else the table must have.

    Raises:
      FileNotFoundError: no directory, no table, or a shard is missing.
      ValueError: another kind of data, or a shard with another size than listed.
    """
    directory = epath.Path(directory)
    if not directory.is_dir():
        raise FileNotFoundError(f"{directory} does not exist; make it with {made_by}.")
    path = directory / METADATA
    if not path.exists():
        raise FileNotFoundError(
            f"{directory} has no {METADATA}, so it is unfinished or something else; run {made_by} "
            "to the end (it resumes)."
        )
    table = read_json(path)
    found = table.get("kind") if isinstance(table, dict) else None
    if found != kind:
        raise ValueError(f"{directory} holds {found}, not {kind}; check the path.")
    for key in ("shards", *keys):
        if key not in table or table[key] == []:
            raise ValueError(f"{path} has no {key}; make the directory again with {made_by}.")
    for shard in table["shards"]:
        file = directory / shard["file"]
        size = file.stat().length if file.exists() else None
        if size != shard["bytes"]:
            found = "is missing" if size is None else f"has {size} bytes, not {shard['bytes']}"
            raise (FileNotFoundError if size is None else ValueError)(
                f"The shard {file} {found}; copy it again, or delete the directory and run "
                f"{made_by}."
            )
    return table


def localise(directory: epath.PathLike, table: dict[str, Any]) -> epath.Path:
    """A local directory with the shards: remote ones are copied to the cache directory once.

    ArrayRecord reads files only. Files are copied under a temporary name, so that an interrupted
    copy is repeated; a copy that is there with the right size is used as it is.
    """
    directory = epath.Path(directory)
    if not is_remote(directory):
        return directory
    digest = hashlib.sha256((os.fspath(directory) + json.dumps(table)).encode()).hexdigest()[:16]
    target = cache_directory() / "shards" / digest
    target.mkdir(parents=True, exist_ok=True)
    for shard in table["shards"]:
        local = target / shard["file"]
        if local.exists() and local.stat().length == shard["bytes"]:
            continue
        logging.info("Copying %s to %s (%.1f MB).", shard["file"], target, shard["bytes"] / 1e6)
        temporary = target / f"{shard['file']}.tmp-{os.getpid()}"
        (directory / shard["file"]).copy(temporary, overwrite=True)
        os.replace(temporary, local)
    return target


def allow_open_files(count: int, where: str) -> None:
    """Raises this process's limit of open files, if it must be, for `count` files of a data set.

    Readers keep every shard open; the usual limit is 1,024. Worker processes inherit it.

    Raises:
      ValueError: the system does not allow so many.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + _OTHER_FILES
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    if hard != resource.RLIM_INFINITY:
        if hard < count + _FEWEST_OTHER_FILES:
            raise ValueError(
                f"{where} has {count} shards, but a process may open only {hard} files here; "
                "raise the limit (ulimit -Hn), or make the data set again with fewer shards."
            )
        wanted = min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))


@dataclasses.dataclass(frozen=True)
class _Shard:
    """What ArrayRecordDataSource wants to know of a file, so that it need not open it."""

    filename: str
    take: int
    skip: int = 0

    @property
    def examples_in_shard(self) -> int:
        return self.take


def open_shards(directory: epath.PathLike, table: dict[str, Any]) -> Any:
    """Random access to the raw records of all shards, in the order of the table."""
    from array_record.python import array_record_data_source

    allow_open_files(len(table["shards"]), os.fspath(directory))
    local = localise(directory, table)
    return array_record_data_source.ArrayRecordDataSource(
        [_Shard(os.fspath(local / s["file"]), s["records"]) for s in table["shards"]]
    )


def pack_image(image: bytes, label: int, name: str) -> bytes:
    """One image record: int32 label, uint16 length of the name, name, encoded picture."""
    encoded = name.encode("utf-8", "backslashreplace")[: 2**16 - 1]
    return _IMAGE_HEADER.pack(label, len(encoded)) + encoded + image


def unpack_image(record: bytes) -> tuple[bytes, int, str]:
    """The inverse of `pack_image`: (encoded picture, label, name)."""
    label, length = _IMAGE_HEADER.unpack_from(record)
    start = _IMAGE_HEADER.size
    return (
        record[start + length :],
        label,
        record[start : start + length].decode("utf-8", "replace"),
    )


class ImageShards:
    """Pictures in ArrayRecord shards, as launch.prepare_imagenet writes them.

    Args:
      directory: one split's directory, local or gs:// (then copied to the cache directory).

    Raises:
      FileNotFoundError, ValueError: unfinished, incomplete or labels out of range.
    """

    channels = 3

    def __init__(self, directory: epath.PathLike) -> None:
        self.directory = os.fspath(directory)
        keys = ("class_names", "labels")
        table = read_table(directory, "images", "python -m launch.prepare_imagenet", keys)
        self.class_names = tuple(table["class_names"])
        check_labels(np.array(table["labels"]), len(self.class_names), self.directory)
        self._data = open_shards(directory, table)

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image, label, _ = unpack_image(self._data[index])
        return {"image": image, "label": label}

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        """Records of several indices, read together."""
        unpacked = (unpack_image(record) for record in self._data.__getitems__(indices))
        return [{"image": image, "label": label} for image, label, _ in unpacked]

    def name(self, index: int) -> str:
        """The original file's name, and where it lies now; that alone if it cannot be read."""
        place = f"{self.directory}[{index}]"
        try:
            return f"{unpack_image(self._data[index])[2]} ({place})"
        except Exception:
            return place


def image_shards(split: str, path: epath.PathLike) -> ImageShards:
    """The split's directory below `path`, which launch.prepare_imagenet wrote."""
    return ImageShards(epath.Path(path) / split)
