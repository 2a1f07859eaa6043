"""Paths, local or in a bucket: how they are given, and files that appear whole."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import pathlib
import re
from collections.abc import Iterator
from typing import IO, Any

import fsspec
from etils import epath

# Not by TensorFlow, which would take seconds to load where it happens to be installed.
os.environ.setdefault("EPATH_USE_TF", "false")

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


@contextlib.contextmanager
def replacing(path: epath.PathLike) -> Iterator[IO[bytes]]:
    """A file to write to that appears at `path` when it is whole; until then what was there stays.

    It is written beside `path` and then takes its place, which in a file system is a rename and in
    a bucket the move of an object: neither ever shows a part. Nothing of the kind holds for
    folders in a bucket, which are moved object by object.
    """
    final = epath.Path(path)
    partial = final.parent / f"{final.name}.partial-{os.getpid()}"
    try:
        with partial.open("wb") as file:
            yield file
            if not is_remote(partial):
                file.flush()
                os.fsync(file.fileno())
        partial.replace(final)
    except BaseException:
        with contextlib.suppress(Exception):
            partial.unlink(missing_ok=True)
        raise


def write_text(path: epath.PathLike, text: str) -> None:
    """Writes a text file that a reader sees whole, or as it was before."""
    if is_remote(path):  # An object shows when its upload is complete.
        epath.Path(path).write_text(text)
        return
    with replacing(path) as file:
        file.write(text.encode())


def write_json(path: epath.PathLike, value: Any) -> None:
    """Writes a JSON file that a reader sees whole, or as it was before."""
    write_text(path, json.dumps(value, indent=2) + "\n")
