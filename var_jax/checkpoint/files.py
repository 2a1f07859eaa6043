"""What lies in a checkpoint's folder: reading it without its arrays, and checking it."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import uuid
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from var_jax.paths import is_remote, resolve, write_json

#: Packages whose versions are recorded with each checkpoint.
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "libtpu")

_SIZES = "files.json"
_BEST = "best.json"


class CheckpointError(RuntimeError):
    """A checkpoint could not be written or read; the message is one sentence."""


class StateMismatchError(ValueError):
    """A checkpoint holds other arrays than were asked for."""


class MissingPartError(KeyError):
    """A checkpoint has no part of the name that was asked for."""

    def __str__(self) -> str:
        return str(self.args[0])


#: Errors that say the question was wrong, not the files.
MISMATCHES = (StateMismatchError, MissingPartError)


@dataclasses.dataclass(frozen=True)
class Inspection:
    """A checkpoint as seen without reading its arrays.

    Attributes:
      directory: the run's folder of checkpoints.
      steps: the complete steps there.
      step: the one looked at.
      metadata: config, versions, fingerprints, as saved.
      arrays: ShapeDtypeStruct of each array, nested as the state was.
      passed_over: newer steps that cannot be read, and what is wrong with their files.
    """

    directory: epath.Path
    steps: list[int]
    step: int
    metadata: dict[str, Any]
    arrays: Any
    passed_over: dict[int, str]

    @property
    def num_bytes(self) -> int:
        """Bytes of all arrays in memory."""
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(self.arrays))


def inspect(path: epath.PathLike, step: int | None = None) -> Inspection:
    """Metadata, and names, shapes and dtypes of the arrays, which stay on disk.

    Args:
      path: workdir, its `checkpoints` folder, or a step's folder; local or gs://.
      step: None for the newest whose files are whole, or the one that the path names.

    Raises:
      FileNotFoundError: there is no checkpoint, or not this step.
      CheckpointError: the step, or all of them, cannot be read.
    """
    directory, named = locate(path)
    steps = complete_steps(directory)
    step = named if step is None else step
    passed_over = {}
    for candidate in candidates(directory, steps, step):
        folder = directory / str(candidate)
        problem = find_problem(folder)
        if problem is None:
            return Inspection(
                directory,
                steps,
                candidate,
                read_metadata(folder),
                saved_arrays(folder),
                passed_over,
            )
        if step is not None:
            raise CheckpointError(f"Checkpoint {folder} cannot be read: {problem}")
        passed_over[candidate] = problem
    raise none_readable(directory, passed_over)


def candidates(directory: epath.Path, steps: list[int], step: int | None) -> list[int]:
    """The steps to try in this order: the one asked for, or all of them, newest first.

    Raises:
      FileNotFoundError: there is no checkpoint, or not this step.
    """
    if not steps:
        raise FileNotFoundError(f"There is no checkpoint in {directory}.")
    if step is None:
        return steps[::-1]
    if step not in steps:
        raise FileNotFoundError(
            f"There is no checkpoint of step {step} in {directory}; there are {steps}."
        )
    return [step]


def none_readable(directory: epath.Path, problems: dict[int, str]) -> CheckpointError:
    """The error for a folder where every step that was tried has a problem."""
    last = list(problems.values())[-1].rstrip(".")
    return CheckpointError(
        f"None of the checkpoints {list(problems)} in {directory} can be read (last reason: "
        f"{last}); repair or remove them, or choose another workdir to start anew."
    )


def locate(path: epath.PathLike) -> tuple[epath.Path, int | None]:
    """(folder of checkpoints, step or None) from a workdir, that folder, or a step's folder."""
    path = resolve(path)
    if path.name.isdigit() and (path.parent.name == "checkpoints" or (path / "state").exists()):
        return path.parent, int(path.name)
    return (path if path.name == "checkpoints" else path / "checkpoints"), None


def complete_steps(directory: epath.Path) -> list[int]:
    """The steps whose writing was finished, oldest first."""
    names = ocp.path.step.standard_name_format()
    try:
        return sorted(found.step for found in names.find_all(directory))
    except FileNotFoundError:
        # Asking first would not do: a folder of a bucket is gone with its last file.
        return []


def probe_writable(directory: epath.Path) -> None:
    """Writes, reads and deletes a small file.

    Raises:
      CheckpointError: any of it failed.
    """
    # Not in a bucket's folder of checkpoints: with its last file the folder would be gone, and a
    # process that is listing it would fail.
    beside = is_remote(directory) and directory.name == "checkpoints"
    probe = (directory.parent if beside else directory) / f".probe-{uuid.uuid4().hex}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe.write_text("ok")
        if probe.read_text() != "ok":
            raise OSError("what was written cannot be read back")
        probe.unlink()
    except Exception as error:
        raise CheckpointError(
            f"Cannot write to {directory}: {one_line(error)}; check that the path exists, that "
            "you may write there and that the disk has room."
        ) from error


def read_metadata(folder: epath.Path) -> dict[str, Any]:
    """The metadata saved with a step.

    Raises:
      CheckpointError: it is missing or not JSON.
    """
    try:
        metadata = json.loads((folder / "metadata" / "metadata").read_text())
        if not isinstance(metadata, dict):
            raise ValueError(f"it is a {type(metadata).__name__}")
        return metadata
    except Exception as error:
        raise CheckpointError(f"The metadata of {folder} is gone: {one_line(error)}.") from error


def saved_arrays(folder: epath.Path) -> Any:
    """ShapeDtypeStructs of a step's state: nested dicts, lists for tuples, None for no leaf."""
    # The handler itself: Orbax's Checkpointer warns that beside the arrays no metadata lie.
    with contextlib.closing(ocp.PyTreeCheckpointHandler()) as reader:
        tree = reader.metadata(folder / "state").tree
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(tuple(x.shape), np.dtype(x.dtype)), tree)


def find_problem(folder: epath.Path) -> str | None:
    """What is wrong with a step's files, as far as it shows without reading the arrays."""
    try:
        sizes = folder / _SIZES
        for name, size in json.loads(sizes.read_text()).items() if sizes.exists() else ():
            file = folder / name
            if not file.exists():
                return f"the file {name} is missing."
            if file.stat().length != size:
                return f"the file {name} has {file.stat().length} bytes instead of {size}."
        read_metadata(folder)
        saved_arrays(folder)
    except CheckpointError as error:
        return str(error)
    except Exception as error:
        return f"its index cannot be read ({one_line(error)})."
    return None


def record_sizes(directory: epath.Path, step: int) -> None:
    """Adds the list of its files to a step that is about to be committed.

    By it a truncation shows later, say after a copy to another disk.
    """
    folder = next(
        (f for f in directory.iterdir() if f.name.startswith(f"{step}.orbax-checkpoint-tmp")),
        directory / str(step),
    )
    files = [f for item in ("state", "metadata") for f in _files(folder / item)]
    sizes = {str(f.relative_to(folder)): f.stat().length for f in files}
    (folder / _SIZES).write_text(json.dumps(sizes, indent=1, sort_keys=True))


def read_best(directory: epath.Path, metric: str) -> tuple[int, float] | None:
    """(step, value) that `write_best` wrote for this metric, if the step is still there."""
    try:
        found = json.loads((directory / _BEST).read_text())
        step, value = int(found["step"]), float(found["value"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    there = found.get("metric") == metric and step in complete_steps(directory)
    return (step, value) if there else None


def write_best(directory: epath.Path, metric: str, step: int, value: float) -> None:
    """Remembers the step with the best value of a metric."""
    write_json(directory / _BEST, {"metric": metric, "step": step, "value": value})


def _files(folder: epath.Path) -> Iterator[epath.Path]:
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _files(entry)
        else:
            yield entry


def subtree(tree: Any, path: str, where: str) -> Any:
    """The part of nested dicts and lists that a path like 'params/tokenizer' names."""
    part = tree
    for depth, name in enumerate(path.split("/")):
        if not isinstance(part, dict) or part.get(name) is None:
            above = "/".join(path.split("/")[:depth]) or "the state"
            names = [k for k, v in part.items() if v is not None] if isinstance(part, dict) else []
            raise MissingPartError(
                f"{where} has no {path!r}: {above} holds {', '.join(names) or 'nothing named'}."
            )
        part = part[name]
    return part


def check_same_arrays(saved: Any, target: Any, where: str, *, exact: bool) -> None:
    """Compares names and shapes (and dtypes, if exact) of a checkpoint and a target.

    Raises:
      StateMismatchError: they differ; up to four differences are named.
    """
    there, here = named_leaves(saved), named_leaves(target)
    problems = [f"{name} is missing there" for name in here if name not in there]
    problems += [f"{name} is not wanted here" for name in there if name not in here]
    for name in here.keys() & there.keys():
        a, b = there[name], here[name]
        if tuple(a.shape) != tuple(b.shape):
            problems.append(f"{name} has shape {tuple(a.shape)} there, {tuple(b.shape)} here")
        elif exact and a.dtype != b.dtype:
            problems.append(f"{name} is {a.dtype} there, {b.dtype} here")
    if problems:
        more = f" (and {len(problems) - 4} more)" if len(problems) > 4 else ""
        raise StateMismatchError(
            f"Checkpoint {where} holds another state than this configuration builds: "
            f"{'; '.join(sorted(problems)[:4])}{more}."
        )


def named_leaves(tree: Any) -> dict[str, Any]:
    """Leaves by their path, names joined by '/'."""
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in flat}


def fingerprint(tree: Any) -> str:
    """SHA-256 over names, shapes, dtypes and bytes of a tree, in the order of the names.

    The same for any sharding and for dicts of any kind; every process must call it.
    """
    digest = hashlib.sha256()
    for name, leaf in sorted(named_leaves(tree).items()):
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            leaf = multihost_utils.process_allgather(leaf, tiled=True)
        value = np.asarray(leaf)
        digest.update(f"{name} {value.shape} {value.dtype.name}\n".encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()


def package_versions() -> dict[str, str]:
    """Versions of the packages that decide what a run computes."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def one_line(error: BaseException) -> str:
    """Type and message of an error on one line of at most 300 characters."""
    text = " ".join(str(error).split()).rstrip(".")
    return f"{type(error).__name__}: {text}"[:300]
