"""Where a run's numbers and pictures go: metrics.jsonl, TensorBoard, samples/, the terminal."""

from __future__ import annotations

import datetime
import json
import math
import pathlib
import tempfile
import time
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath

from var_jax.paths import is_remote, write_text
from var_jax.pixels import encode_png
from var_jax.train.mirror import Mirror


def flatten(metrics: dict[str, Any]) -> dict[str, float]:
    """Scalars by name; entry i of an array becomes name/i."""
    flat = {}
    for name, value in metrics.items():
        value = np.asarray(value)
        if value.ndim == 0:
            flat[name] = float(value)
        else:
            flat |= {f"{name}/{i}": float(v) for i, v in enumerate(value.reshape(-1))}
    return flat


class MetricWriter:
    """Writes on process 0 and does nothing on others.

    A resumed run goes on in the same files: what an interrupted run logged past the restored
    step is taken out of metrics.jsonl and hidden in TensorBoard, so steps never run backwards.
    The files of a gs:// workdir are written locally and copied there by a thread, every two
    minutes and at the end.

    Args:
      workdir: local or gs:// directory; gets metrics.jsonl, tensorboard/ and samples/.
      start_step: first step that will be logged.
      wandb_project: also logs to Weights & Biases (needs the package wandb); '' is off.
    """

    def __init__(self, workdir: epath.PathLike, start_step: int = 0, wandb_project: str = ""):
        self.active = jax.process_index() == 0
        if not self.active:
            return
        from tensorboardX import SummaryWriter

        workdir = epath.Path(workdir)
        self._mirror = Mirror(workdir) if is_remote(workdir) else None
        self._folder = self._mirror.folder if self._mirror else pathlib.Path(workdir)
        self._folder.mkdir(parents=True, exist_ok=True)
        before = workdir / "metrics.jsonl"
        lines = before.read_text().splitlines() if before.exists() else []
        kept = "".join(line + "\n" for line in lines if _step(line) < start_step)
        path = self._folder / "metrics.jsonl"
        write_text(path, kept)
        self._file = open(path, "a")  # noqa: SIM115
        self._board = SummaryWriter(str(self._folder / "tensorboard"), purge_step=start_step)
        self._wandb = _wandb_run(workdir, wandb_project) if wandb_project else None

    def write(self, step: int, metrics: dict[str, Any]) -> None:
        """Logs scalars and small arrays (an array's entries as name/0, name/1, ...)."""
        if not self.active:
            return
        flat = flatten(metrics)
        # JSON has no NaN; null keeps the line readable for every parser.
        clean = {k: v if math.isfinite(v) else None for k, v in flat.items()}
        self._file.write(json.dumps({"step": step, **clean}) + "\n")
        self._file.flush()
        for name, value in flat.items():
            self._board.add_scalar(name, value, step)
        self._board.flush()
        if self._wandb is not None:
            self._wandb.log(flat, step=step)

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Saves a picture uint8 [H, W, c] as samples/<name>_<step>.png and in TensorBoard."""
        if not self.active:
            return
        folder = self._folder / "samples"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}_{step:08d}.png").write_bytes(encode_png(image))
        self._board.add_image(name, image, step, dataformats="HWC")

    def copy_soon(self) -> None:
        """With a gs:// workdir, starts to copy there what is new; never waits."""
        if self.active and self._mirror is not None:
            self._mirror.copy_soon()

    def close(self) -> None:
        """Closes the files and copies what is left; what cannot be copied is said, not raised."""
        if not self.active:
            return
        self._file.close()
        self._board.close()
        if self._wandb is not None:
            self._wandb.finish()
        if self._mirror is not None:
            self._mirror.close()


def read_metrics(workdir: epath.PathLike) -> list[dict[str, float]]:
    """The lines of metrics.jsonl; a last line cut off by an interruption is left out."""
    path = epath.Path(workdir) / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if _step(line) >= 0 and _step(line) != math.inf]


def _step(line: str) -> float:
    """The step of a line; infinity if the line is damaged."""
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError):
        return math.inf


def _wandb_run(workdir: epath.Path, project: str) -> Any:
    """One Weights & Biases run over all resumes: its id stays in the workdir."""
    import wandb

    path = workdir / "wandb_id.txt"
    run_id = path.read_text().strip() if path.exists() else wandb.util.generate_id()
    path.write_text(run_id)
    # Its own files are uploaded by wandb itself.
    folder = tempfile.mkdtemp(prefix="var_jax-wandb-") if is_remote(workdir) else str(workdir)
    return wandb.init(project=project, id=run_id, resume="allow", dir=folder)


class Progress:
    """The line on the terminal of process 0: step, loss, images a second, time to go.

    Args:
      name: what runs, such as 'tokenizer'.
      start_step, num_steps: of this run.
      batch_size: over all processes.
    """

    def __init__(self, name: str, start_step: int, num_steps: int, batch_size: int) -> None:
        self.name, self.num_steps, self.batch_size = name, num_steps, batch_size
        self._last = (start_step, time.perf_counter())

    def pause(self, seconds: float) -> None:
        """Leaves `seconds` that just went by out of the next rates."""
        step, then = self._last
        self._last = (step, then + seconds)

    def rates(self, step: int) -> dict[str, float]:
        """Speed since the last call: step_seconds, images_per_second (also a chip), eta_seconds."""
        before, then = self._last
        now = time.perf_counter()
        self._last = (step, now)
        seconds = (now - then) / max(step - before, 1)
        per_second = self.batch_size / max(seconds, 1e-9)
        return {
            "step_seconds": seconds,
            "images_per_second": per_second,
            "images_per_second_per_chip": per_second / jax.device_count(),
            "eta_seconds": seconds * (self.num_steps - step),
        }

    def show(self, step: int, metrics: dict[str, float], rates: dict[str, float]) -> None:
        """Prints the line on process 0."""
        if jax.process_index():
            return
        eta = datetime.timedelta(seconds=round(rates["eta_seconds"]))
        numbers = "  ".join(f"{k} {v:.4g}" for k, v in metrics.items())
        logging.info(
            "%s %d/%d  %s  %.4g images/s  to go %s",
            self.name,
            step,
            self.num_steps,
            numbers,
            rates["images_per_second"],
            eta,
        )
