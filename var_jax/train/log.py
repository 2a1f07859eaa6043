"""What the loop logs: metrics read one step late, rates, spikes, where the time goes."""

from __future__ import annotations

import collections
import contextlib
import statistics
import time
from collections.abc import Iterator
from typing import Any

import jax
from absl import logging

from var_jax.train.experiment import Experiment
from var_jax.train.metrics import MetricWriter, Progress, flatten
from var_jax.train.state import TrainState

#: A loss this many standard deviations above the mean of the last steps is reported.
_SPIKE_DEVIATIONS, _SPIKE_WINDOW = 8.0, 100
#: What a run's time goes to when it does not go to steps.
_OVERHEADS = ("compilation", "checkpoint", "evaluation", "data_wait")


class TrainingDiverged(RuntimeError):
    """Too many updates in a row were not finite."""


def due(step: int, every: int) -> bool:
    """Whether what happens every so many steps happens after `step`; 0 is never."""
    return every > 0 and step % every == 0


class TrainLog:
    """Reads each step's metrics one step late, so that the devices never wait for the host.

    Args:
      experiment: what is trained.
      writer: takes the metrics.
      start: first step.
    """

    def __init__(self, experiment: Experiment, writer: MetricWriter, start: int) -> None:
        self._settings = settings = experiment.settings
        self._writer, self._learning_rate = writer, experiment.learning_rate
        self._flops, self._peak = experiment.flops_per_image, experiment.peak_flops
        self._progress = Progress(experiment.name, start, settings.num_steps, settings.batch_size)
        self._began = time.perf_counter()
        self._seconds = dict.fromkeys(_OVERHEADS, 0.0)
        self._pending: tuple[int, Any] | None = None
        self._losses: collections.deque = collections.deque(maxlen=_SPIKE_WINDOW)
        self._window: list[dict[str, float]] = []
        self._wait = 0.0
        self._skipped = 0

    @contextlib.contextmanager
    def timed(self, overhead: str) -> Iterator[None]:
        """Counts the time inside as 'compilation', 'checkpoint' or 'evaluation', not as steps."""
        began = time.perf_counter()
        yield
        seconds = time.perf_counter() - began
        self._seconds[overhead] += seconds
        self._progress.pause(seconds)

    def add(self, step: int, metrics: Any, wait: float) -> None:
        """Takes the metrics of a step that the devices may still compute.

        Args:
          step: from 0.
          metrics: of the step.
          wait: seconds that the loop waited for its batch.

        Raises:
          TrainingDiverged: too many updates in a row were not finite.
        """
        self._seconds["data_wait"] += wait
        previous, self._pending = self._pending, (step, metrics)
        self._wait += wait
        if previous is not None:
            self._read(*previous)

    def flush(self) -> None:
        """Reads the metrics of the last step."""
        if self._pending is not None:
            previous, self._pending = self._pending, None
            self._read(*previous)

    def evaluate(self, evaluators: Any, state: TrainState, step: int) -> dict[str, float]:
        """Runs the evaluators on the state after `step` updates; 'eval/<name>' -> value."""
        self.flush()
        found: dict[str, Any] = {}
        with self.timed("evaluation"):
            for evaluator in evaluators:
                result = evaluator(state, step)
                found |= result.metrics
                for name, image in result.images.items():
                    self._writer.image(step, name, image)
        found = {f"eval/{k}": v for k, v in flatten(found).items()}
        self._writer.write(step - 1, found)
        if found and jax.process_index() == 0:
            shown = {k: v for k, v in found.items() if k.count("/") == 1}
            logging.info("step %d  %s", step, "  ".join(f"{k} {v:.4g}" for k, v in shown.items()))
        return found

    def _read(self, step: int, metrics: Any) -> None:
        flat = flatten(jax.device_get(metrics))
        in_row = int(flat["skipped_in_row"])
        if flat["skipped"]:
            self._skipped += 1
            logging.warning(
                "Step %d: loss %s, gradient norm %s; the update was skipped (samples %s).",
                step,
                flat["loss"],
                flat["gradient_norm"],
                self._samples(step),
            )
        if in_row >= self._settings.max_skipped:
            raise TrainingDiverged(
                f"{in_row} updates in a row were not finite; the parameters are those of step "
                f"{step + 1 - in_row}. Lower the learning rate or look at the data named above."
            )
        if not flat["skipped"]:
            self._check_spike(step, flat["loss"])
        self._window.append(flat)
        if due(step + 1, self._settings.log_every):
            self._write(step)

    def _check_spike(self, step: int, loss: float) -> None:
        if len(self._losses) == _SPIKE_WINDOW:
            mean, spread = statistics.fmean(self._losses), statistics.pstdev(self._losses)
            if loss > mean + _SPIKE_DEVIATIONS * max(spread, 1e-3 * abs(mean)):
                logging.warning(
                    "Step %d: loss %.4g after a mean of %.4g (samples %s).",
                    step,
                    loss,
                    mean,
                    self._samples(step),
                )
        self._losses.append(loss)

    def _samples(self, step: int) -> str:
        first = step * self._settings.batch_size
        return f"{first}..{first + self._settings.batch_size - 1}"

    def _write(self, step: int) -> None:
        # Steps that train different levels report different names.
        names = {name: None for m in self._window for name in m}
        mean = {k: statistics.fmean(m[k] for m in self._window if k in m) for k in names}
        mean.pop("skipped_in_row")
        mean["skipped"] = self._skipped
        rates = self._progress.rates(step + 1)
        shown = {k: mean[k] for k in ("loss", "accuracy_mean", "psnr") if k in mean}
        self._progress.show(step + 1, shown, rates)
        if self._flops is not None:
            steps = range(step + 1 - len(self._window), step + 1)
            per_image = statistics.fmean(map(self._flops, steps))
            chip = per_image * rates["images_per_second_per_chip"]
            rates["teraflops_per_second_per_chip"] = chip / 1e12
            if self._peak:
                rates["model_flop_utilisation"] = chip / self._peak
        if self._learning_rate is not None:
            rates["learning_rate"] = float(self._learning_rate(step))
        memory = jax.local_devices()[0].memory_stats() or {}
        if "peak_bytes_in_use" in memory:
            rates["peak_memory_gib"] = memory["peak_bytes_in_use"] / 2**30
        wall = time.perf_counter() - self._began
        rates |= {f"{name}_seconds": s for name, s in self._seconds.items()}
        rates["goodput"] = 1 - sum(self._seconds.values()) / wall
        rates["data_wait_ms"] = 1e3 * self._wait / len(self._window)
        self._writer.write(step, mean | rates)
        self._window, self._wait = [], 0.0
