"""Checkpoints of a run: one atomic composite of state and metadata a step, by Orbax.

Layout: `<workdir>/checkpoints/<step>/{state,metadata,files.json}`; the last is the list of
the step's files and their sizes. What is restored, in order: the step asked for; else the
newest step that can be read. A step that cannot be read is passed over with a warning, and a
run that may write moves it aside as `<step>.unreadable`. A step appears whole: by the rename of
its folder, or in a bucket, where folders have none, by a file `commit_success.txt` written last.

Orbax's interface v1 was tried at 0.12.8: it reads these checkpoints, whole or in part, in another
type and sharding, and saves in the background beside the best step; but there it is a shell around
the manager used here that cannot be opened to read only, takes the metadata for arrays unless told,
and names their file otherwise, so that no release before could read what it writes. With Orbax 1.0,
where it becomes the top level, the move is due.
"""

from __future__ import annotations

import json
import math
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers as managers

from var_jax.checkpoint import files
from var_jax.checkpoint.files import CheckpointError, fingerprint, inspect

__all__ = ["CheckpointError", "Checkpointer", "fingerprint", "inspect"]

_ITEMS = ("state", "metadata")


class Checkpointer:
    """Saves and restores the steps of one run; every process of the run calls it alike.

    Args:
      path: the run's workdir, its `checkpoints` folder, or one step's folder (for reading);
        local or gs://.
      max_to_keep: number of newest steps that stay.
      best_metric: name of a metric; the step with its best value stays as well (`note_metrics`).
      best_mode: 'min' or 'max', which value of best_metric is best.
      read_only: never write, move or delete anything.

    Raises:
      CheckpointError: the folder cannot be written (a probe file is written and deleted).
    """

    def __init__(
        self,
        path: epath.PathLike,
        *,
        max_to_keep: int = 3,
        best_metric: str | None = None,
        best_mode: str = "min",
        read_only: bool = False,
    ) -> None:
        if max_to_keep < 1:
            raise ValueError(f"max_to_keep must be 1 or more, got {max_to_keep}.")
        if best_mode not in ("min", "max"):
            raise ValueError(f"best_mode must be 'min' or 'max', got {best_mode!r}.")
        self.directory, self._only_step = files.locate(path)
        self._best_metric, self._best_mode = best_metric, best_mode
        read_only = read_only or self._only_step is not None
        self._pending: int | None = None
        if not read_only:
            files.probe_writable(self.directory)
        self._best = files.read_best(self.directory, best_metric) if best_metric else None
        keep = [managers.LatestN(max_to_keep), _Steps(lambda: self._best and self._best[0])]
        self._manager = (
            None
            if read_only
            else ocp.CheckpointManager(
                self.directory,
                item_names=_ITEMS,
                options=ocp.CheckpointManagerOptions(
                    preservation_policy=managers.AnyPreservationPolicy(keep),
                    async_options=ocp.options.AsyncOptions(
                        post_finalization_callback=self._record_files
                    ),
                ),
            )
        )

    def __enter__(self) -> Checkpointer:
        return self

    def __exit__(self, kind: type | None, *rest: Any) -> None:
        self.close()

    def save(
        self,
        step: int,
        state: Any,
        metadata: dict[str, Any],
    ) -> bool:
        """Starts to write a step in the background.

        The arrays are copied before it returns, so the state may be donated right after.

        Args:
          step: number of finished updates.
          state: tree of arrays without boxes, sharded in any way.
          metadata: what JSON can hold: the config, fingerprints. Step, time and package
            versions are added.

        Returns:
          Whether a save was started; False also if the step is already there.

        Raises:
          CheckpointError: this save, or the one before, could not be written.
        """
        self.wait()
        if step in self._manager.all_steps():
            return False
        metadata = {
            "step": step,
            "wall_time": time.time(),
            "packages": files.package_versions(),
            **metadata,
        }
        try:
            json.dumps(metadata)
        except TypeError as error:
            raise ValueError(f"The checkpoint's metadata is not JSON: {error}.") from error
        self._pending = step
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(state), metadata=ocp.args.JsonSave(metadata)
        )
        try:
            self._manager.save(step, args=args, force=True)
        except Exception as error:
            raise self._write_error(error) from error
        return True

    def note_metrics(self, step: int, metrics: dict[str, float]) -> None:
        """Tells what a saved step is worth; the best step stays, also in later runs.

        Args:
          step: was saved, and may still be on its way to the disk.
          metrics: the same on every process; without a finite best_metric nothing changes.
        """
        value = metrics.get(self._best_metric) if self._best_metric else None
        if value is None or not math.isfinite(value):
            return
        sign = 1 if self._best_mode == "min" else -1
        if self._best is None or sign * value < sign * self._best[1]:
            self._best = (step, float(value))
            if jax.process_index() == 0:
                files.write_best(self.directory, self._best_metric, *self._best)

    def check(self) -> None:
        """Raises CheckpointError if the background save has failed; cheap, call it each step."""
        if self._pending is not None and not self._manager.is_saving_in_progress():
            self.wait()

    def wait(self) -> None:
        """Blocks until the step being saved is complete.

        Raises:
          CheckpointError: it could not be written.
        """
        if self._manager is None:
            return
        try:
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
        except Exception as error:
            raise self._write_error(error) from error
        self._pending = None

    def close(self) -> None:
        """Waits for the last save and frees the threads."""
        try:
            self.wait()
        finally:
            if self._manager is not None:
                self._manager.close()

    def steps(self) -> list[int]:
        """The complete steps, oldest first."""
        found = files.complete_steps(self.directory)
        return found if self._only_step is None else [s for s in found if s == self._only_step]

    def latest_step(self) -> int | None:
        """The newest complete step."""
        return max(self.steps(), default=None)

    def best_step(self) -> int | None:
        """The step with the best value of best_metric, if it is there."""
        step = self._best[0] if self._best is not None else None
        return step if step in self.steps() else None

    def restore(self, target: Any, step: int | None = None) -> tuple[Any, dict[str, Any], int]:
        """Restores the whole state straight into the target's shardings.

        Args:
          target: tree of ShapeDtypeStructs with shardings (sharding.abstract_state), on any
            mesh and number of processes, or without: then on the default device.
          step: None for the newest that can be read.

        Returns:
          (state, metadata, step).

        Raises:
          FileNotFoundError: there is no checkpoint, or not this step.
          ValueError: the checkpoint holds other arrays than the target.
          CheckpointError: no step can be read.
        """

        def read(candidate: int) -> Any:
            saved = files.saved_arrays(self.directory / str(candidate))
            files.check_same_arrays(saved, target, f"{self.directory}/{candidate}", exact=True)
            with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as reader:
                return reader.restore(
                    self.directory / str(candidate) / "state",
                    args=ocp.args.StandardRestore(_placed(target)),
                )

        return self._restore(read, step)

    def restore_params(
        self,
        path: str = "params",
        target: Any = None,
        step: int | None = None,
        *,
        as_numpy: bool = False,
    ) -> tuple[Any, dict[str, Any], int]:
        """Restores one part of the state; nothing else of it is read.

        Args:
          path: names joined by '/', such as 'params', 'ema' or 'params/tokenizer/codec'.
          target: tree of ShapeDtypeStructs (with shardings, any float dtype) of that part.
            None: everything below the path, as nested dicts on the default device.
          step: None for the newest that can be read.
          as_numpy: with target None, numpy arrays in host memory instead.

        Returns:
          (part, metadata, step).

        Raises:
          KeyError: the state has no such part; the names that it has are listed.
          FileNotFoundError, ValueError, CheckpointError: as for restore.
        """

        def read(candidate: int) -> Any:
            folder = self.directory / str(candidate)
            saved = files.saved_arrays(folder)
            part = files.subtree(saved, path, str(folder))
            if target is not None:
                files.check_same_arrays(part, target, f"{folder}:{path}", exact=False)
            wanted = _placed(part if target is None else target)
            restore_args = (
                jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
                if as_numpy and target is None
                else ocp.checkpoint_utils.construct_restore_args(wanted)
            )
            names = path.split("/")
            with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
                tree = reader.restore(
                    folder / "state",
                    args=ocp.args.PyTreeRestore(
                        item=_nest(names, wanted),
                        restore_args=_nest(names, restore_args),
                        partial_restore=True,
                    ),
                )
            for name in names:
                tree = tree[name]
            return tree

        return self._restore(read, step)

    def read_metadata(self, step: int | None = None) -> dict[str, Any]:
        """The metadata of a step; of the newest step that has any by default."""
        for candidate in files.candidates(self.directory, self.steps(), step):
            try:
                return files.read_metadata(self.directory / str(candidate))
            except CheckpointError as error:
                if step is not None:
                    raise
                logging.warning("%s Trying the step before.", error)
        raise CheckpointError(f"No step in {self.directory} has readable metadata.")

    def _restore(
        self, read: Callable[[int], Any], step: int | None
    ) -> tuple[Any, dict[str, Any], int]:
        problems = {}
        for candidate in files.candidates(self.directory, self.steps(), step):
            folder = self.directory / str(candidate)
            # One process looks at the files, so that all of them pass over the same steps.
            looked = files.find_problem(folder) if jax.process_index() == 0 else None
            problem = _agree(looked)
            if problem is None:
                metadata = files.read_metadata(folder)
                state, problem = _attempt(read, candidate)
            if problem is None:
                return state, metadata, candidate
            message = f"Checkpoint {folder} cannot be read: {problem}"
            if step is not None:
                raise CheckpointError(message)
            problems[candidate] = problem
            logging.warning("%s It is passed over; trying the step before.", message)
            self._set_aside(candidate)
        raise files.none_readable(self.directory, problems)

    def _set_aside(self, step: int) -> None:
        if self._manager is None:
            return
        if jax.process_index() == 0:
            folder = self.directory / str(step)
            name, number = f"{step}.unreadable", 0
            while (self.directory / name).exists():
                number += 1
                name = f"{step}.unreadable.{number}"
            folder.rename(self.directory / name)
            logging.warning("Moved %s to %s.", folder, name)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"checkpoint {step} set aside")
        self._manager.reload()

    def _record_files(self) -> None:
        if self._pending is not None and jax.process_index() == 0:
            files.record_sizes(self.directory, self._pending)

    def _write_error(self, error: Exception) -> CheckpointError:
        step, self._pending = self._pending, None
        self._manager.reload()
        good = max((s for s in self.steps() if s != step), default=None)
        return CheckpointError(
            f"Could not write the checkpoint of step {step} to {self.directory}: "
            f"{files.one_line(error)}; "
            + ("no step is saved yet." if good is None else f"the last good step is {good}.")
        )


class _Steps:
    """A preservation policy of Orbax: keeps one step, which may change."""

    def __init__(self, step: Callable[[], int | None]) -> None:
        self._step = step

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        return [c.step == self._step() for c in checkpoints]


def _nest(names: Sequence[str], tree: Any) -> Any:
    for name in reversed(names):
        tree = {name: tree}
    return tree


def _placed(target: Any) -> Any:
    """The target with the default device where it names no sharding."""
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

    def place(leaf: Any) -> jax.ShapeDtypeStruct:
        sharding = getattr(leaf, "sharding", None) or device
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(place, target)


def _attempt(read: Callable[[int], Any], step: int) -> tuple[Any, str | None]:
    """Reads a step; on failure of any process all of them get a problem, never an exception.

    A state of another structure is not a damaged file and does raise.
    """
    state, problem = None, None
    try:
        state = read(step)
    except (ValueError, KeyError) as error:
        if isinstance(error, files.MISMATCHES):
            raise
        problem = files.one_line(error)
    except Exception as error:
        logging.debug("%s", traceback.format_exc())
        problem = files.one_line(error)
    return state, _agree(problem)


def _agree(problem: str | None) -> str | None:
    """The problem that any process has, so that all of them go the same way."""
    if jax.process_count() == 1:
        return problem
    failed = multihost_utils.process_allgather(np.int32(problem is not None))
    if not np.any(failed):
        return None
    where = int(np.argmax(failed))
    return problem or f"process {where} could not read it."
