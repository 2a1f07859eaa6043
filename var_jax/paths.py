"""Paths, local or in a bucket: how they are given, and files that appear whole."""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import json
import os
import pathlib
import re
import stat
from collections.abc import Iterator
from typing import IO, Any

import fsspec
from etils import epath

# Not by TensorFlow, which would take seconds to load where it happens to be installed.
os.environ.setdefault("EPATH_USE_TF", "false")

_NO_ROOM = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the quota is used up",
    errno.EFBIG: "files may not grow so large here",
}

# By default gcsfs keeps listings for ever, so that what another host or Orbax's own writer puts
# into a folder would never be seen, and a file that grew would be read at its old length.
for _protocol in ("gs", "gcs"):
    fsspec.config.conf.setdefault(_protocol, {}).setdefault("use_listings_cache", False)


def is_remote(path: epath.PathLike) -> bool:
    """Whether a path lies in a bucket (gs://) and not in a file system."""
    return os.fspath(path).startswith("gs://")


def resolve(path: epath.PathLike) -> epath.Path:
    """The place that a flag, a config key or an argument names.

    A local path becomes absolute, with the home directory for ~; links, and .. behind them, stay
    as they are. A slash at the end means nothing.

    Raises:
      ValueError: it is empty, begins like an address that is not gs://, has a sign in a bucket
        that stands for others, or what opens gs:// is not installed.
    """
    text = os.fspath(path)
    if not text:
        raise ValueError("A path is empty; give a local path or gs://BUCKET/...")
    if is_remote(text):
        if importlib.util.find_spec("gcsfs") is None:
            raise ValueError(f"The path {text!r} needs gcsfs: pip install 'var_jax[gcs]'.")
        bucket, _, rest = text.removeprefix("gs://").partition("/")
        if not bucket:
            raise ValueError(f"The path {text!r} names no bucket; give gs://BUCKET/...")
        if re.search(r"[*?\[\]]", text):  # gcsfs takes them for patterns, in deleting too.
            raise ValueError(
                f"The path {text!r} has one of * ? [ ], which would stand for many objects of the "
                "bucket; choose a name without them."
            )
        return epath.Path("/".join([f"gs://{bucket}", *(p for p in rest.split("/") if p)]))
    # One slash is what is left of an address that went through a local path.
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", text):
        raise ValueError(f"The path {text!r} is neither local nor does it begin with gs://.")
    return epath.Path(pathlib.Path(text).expanduser().absolute())


def cache_directory() -> epath.Path:
    """Where downloaded and derived files go: $VAR_JAX_CACHE, or ~/.cache/var_jax."""
    return resolve(os.environ.get("VAR_JAX_CACHE") or "~/.cache/var_jax")


class WriteError(OSError):
    """A file could not be written; the message is one sentence."""


@contextlib.contextmanager
def replacing(path: epath.PathLike) -> Iterator[IO[bytes]]:
    """A file to write to that appears at `path` when it is whole; until then what was there stays.

    It is written beside `path` and then takes its place, which in a file system is a rename and in
    a bucket the move of an object: neither ever shows a part. Nothing of the kind holds for
    folders in a bucket, which are moved object by object. A link is followed; a device or a pipe
    is written as it comes.

    Raises:
      WriteError: the disk is full, or a limit is reached.
    """
    final = epath.Path(path if is_remote(path) else os.path.realpath(path))
    beside = is_remote(final) or not os.path.exists(final) or stat.S_ISREG(os.stat(final).st_mode)
    target = final.parent / f"{final.name}.partial-{os.getpid()}" if beside else final
    try:
        with explaining(path):
            with target.open("wb") as file:
                yield file
                if beside and not is_remote(target):
                    file.flush()
                    os.fsync(file.fileno())
            if beside:
                target.replace(final)
    except BaseException:
        if beside:
            with contextlib.suppress(Exception):
                target.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def explaining(path: epath.PathLike) -> Iterator[None]:
    """Turns what says that there is no room into a sentence about `path`.

    Raises:
      WriteError: the disk is full, or a limit is reached.
    """
    try:
        yield
    except OSError as error:
        reason = _NO_ROOM.get(error.errno)
        if error.errno is None and "requested and" in str(error):  # NumPy, of a short write
            reason = "the disk is full, or files may not grow so large here"
        if reason is None:
            raise
        raise WriteError(
            f"Could not write {path}: {reason}; make room or give another place. What was there "
            "before is unchanged."
        ) from error


def check_writable(path: epath.PathLike) -> None:
    """Refuses a place for a file that cannot be written, before the work for it is done.

    Raises:
      FileNotFoundError, IsADirectoryError, PermissionError: one sentence.
    """
    if is_remote(path):
        return
    final = epath.Path(os.path.realpath(path))
    if final.is_dir():
        raise IsADirectoryError(f"The output {path} is a folder; give the path of a file.")
    if not final.parent.is_dir():
        raise FileNotFoundError(f"The folder of the output {path} does not exist; make it first.")
    if not os.access(final.parent, os.W_OK):
        raise PermissionError(f"The folder of the output {path} is read-only.")


def write_bytes(path: epath.PathLike, data: bytes) -> None:
    """Writes a file that a reader sees whole, or as it was before."""
    if is_remote(path):  # An object shows when its upload is complete.
        epath.Path(path).write_bytes(data)
        return
    with replacing(path) as file:
        file.write(data)


def write_text(path: epath.PathLike, text: str) -> None:
    """Writes a text file that a reader sees whole, or as it was before."""
    write_bytes(path, text.encode())


def write_json(path: epath.PathLike, value: Any) -> None:
    """Writes a JSON file that a reader sees whole, or as it was before."""
    write_text(path, json.dumps(value, indent=2) + "\n")
