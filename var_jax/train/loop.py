"""The training loop: restore, then step, log, evaluate and save until the end."""

from __future__ import annotations

import collections
import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import jax
import numpy as np
import optax
from absl import logging
from etils import epath

from var_jax.checkpoint import Checkpointer
from var_jax.data.prefetch import prefetch_to_device
from var_jax.objectives.base import Objective
from var_jax.parallel import sharding
from var_jax.train.metrics import MetricWriter, Progress, flatten
from var_jax.train.state import TrainState, create
from var_jax.train.step import jit_train_step, make_train_step


@dataclasses.dataclass(frozen=True)
class TrainSettings:
    """Settings of the loop.

    Attributes:
      num_steps: updates of the whole training.
      batch_size: over all devices and microbatches.
      microbatches: parts of a batch that a device works on one after the other.
      ema_decay: of the parameters' moving average; 0 keeps none.
      log_every, save_every, evaluate_every: in steps; 0 is only at the end (log_every: never).
      max_to_keep: newest checkpoints that stay.
      best_metric: the checkpoint with its lowest value also stays; '' is off.
      max_skipped: non-finite updates in a row after which the run stops.
      profile_start, profile_steps: steps that the profiler records into workdir/profile.
      wandb_project: see `MetricWriter`.
    """

    num_steps: int
    batch_size: int
    microbatches: int = 1
    ema_decay: float = 0.0
    log_every: int = 50
    save_every: int = 1000
    evaluate_every: int = 0
    max_to_keep: int = 3
    best_metric: str = ""
    max_skipped: int = 10
    profile_start: int = 0
    profile_steps: int = 0
    wandb_project: str = ""


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What an evaluator found.

    Attributes:
      metrics: numbers by name.
      images: pictures uint8 [H, W, c] by name.
    """

    metrics: dict[str, Any] = dataclasses.field(default_factory=dict)
    images: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)


class Evaluator(Protocol):
    """Runs during training on every process alike."""

    def __call__(self, state: TrainState, step: int) -> Evaluation:
        """Evaluates the state after `step` updates; must not keep or donate its arrays."""


class TrainingDiverged(RuntimeError):
    """Too many updates in a row were not finite."""


#: A loss this many standard deviations above the mean of the last steps is reported.
_SPIKE_DEVIATIONS, _SPIKE_WINDOW = 8.0, 100


def train(
    *,
    name: str,
    objective_at: Callable[[int], Objective],
    optimizer: optax.GradientTransformation,
    frozen: Any,
    batches: Callable[[int], Iterator[dict[str, np.ndarray]]],
    settings: TrainSettings,
    mesh: jax.sharding.Mesh,
    preset: str,
    workdir: epath.PathLike,
    metadata: dict[str, Any],
    seed: int = 0,
    learning_rate: Callable[[int], Any] | None = None,
    flops_per_image: float = 0.0,
    peak_flops: float = 0.0,
    evaluators: Sequence[Evaluator] = (),
    initial_params: Any = None,
    should_stop: Callable[[int], bool] = lambda step: False,
) -> TrainState:
    """Trains until settings.num_steps, from the newest checkpoint in `workdir` if there is one.

    Batch and random choices of a step depend on the seed and the step only, so that an
    interrupted run ends with the same bits as an undisturbed one.

    Args:
      name: in the progress line.
      objective_at: objective of a step; few distinct ones, each is compiled once.
      optimizer: updates the parameters.
      frozen: parameters that do not train, host or device arrays; replicated.
      batches: start step -> this process's shares of the batches from there on.
      settings: see `TrainSettings`.
      mesh, preset: see `var_jax.parallel.sharding`.
      workdir: gets checkpoints/, metrics.jsonl, tensorboard/ and samples/.
      metadata: what the checkpoint says beside the state; JSON.
      seed: of parameters and all random choices.
      learning_rate: schedule, to be logged.
      flops_per_image: floating-point operations of a training step for one image, for
        TFLOP/s; 0 where unknown.
      peak_flops: of one chip a second, for the utilisation; 0 where unknown.
      evaluators: run every settings.evaluate_every steps and at the end.
      initial_params: parameters to start from in place of random ones (fine-tuning).
      should_stop: asked after each step; True saves and returns.

    Returns:
      The final state; its step is smaller than num_steps if it was stopped.

    Raises:
      TrainingDiverged: max_skipped updates in a row were not finite.
      CheckpointError: a checkpoint could not be written.
    """
    local = sharding.check_batch(settings.batch_size, mesh, settings.microbatches)
    checkpointer = Checkpointer(
        workdir,
        max_to_keep=settings.max_to_keep,
        best_metric=settings.best_metric or None,
        save_every=settings.save_every or settings.num_steps,
    )

    def init(key):
        return create(objective_at(0), optimizer, key, settings.ema_decay > 0)

    with sharding.activate(mesh, preset):
        boxed = jax.eval_shape(init, jax.random.key(seed))
        abstract = sharding.abstract_state(boxed, mesh, preset)
        if checkpointer.latest_step() is not None:
            state, saved, start = checkpointer.restore(abstract)
            _check_same_tokenizer(saved, metadata, workdir)
            logging.info("Resumed %s from step %d in %s.", name, start, workdir)
        else:
            state, _ = sharding.init_sharded(init, jax.random.key(seed), mesh=mesh, preset=preset)
            start = 0
            if initial_params is not None:
                state = _start_from(state, initial_params)
        shardings = jax.tree.map(lambda x: x.sharding, abstract)
        frozen = jax.device_put(frozen, sharding.replicated_sharding(mesh))
        size = sum(x.size for x in jax.tree.leaves(state.params))
        logging.info(
            "%s: %.2fM parameters, %d steps of %d images (%d a device at a time), mesh %s, %s.",
            name,
            size / 1e6,
            settings.num_steps,
            settings.batch_size,
            local,
            dict(mesh.shape),
            mesh.devices.flat[0].device_kind,
        )
        if start >= settings.num_steps:
            logging.info("%s in %s is done.", name, workdir)
            checkpointer.close()
            return state

        compiled: dict[Objective, Any] = {}

        def step_function(step):
            objective = objective_at(step)
            if objective not in compiled:
                function = make_train_step(
                    objective, optimizer, seed, settings.microbatches, settings.ema_decay
                )
                compiled[objective] = jit_train_step(function, shardings, mesh)
            return compiled[objective]

        writer = MetricWriter(workdir, start, settings.wandb_project)
        log = _Log(name, settings, writer, start, learning_rate, flops_per_image, peak_flops)
        stream = prefetch_to_device(batches(start), sharding.batch_sharding(mesh))
        profiling = False
        try:
            for step in range(start, settings.num_steps):
                if settings.profile_steps and step == settings.profile_start:
                    jax.profiler.start_trace(str(epath.Path(workdir) / "profile"))
                    profiling = True
                batch, wait = next(stream)
                with jax.transfer_guard("disallow"):
                    state, metrics = step_function(step)(state, frozen, batch)
                log.add(step, metrics, wait)
                if profiling and step + 1 >= settings.profile_start + settings.profile_steps:
                    jax.block_until_ready(state)
                    jax.profiler.stop_trace()
                    profiling = False

                done = step + 1
                last = done == settings.num_steps
                evaluated = {}
                if evaluators and (last or _due(done, settings.evaluate_every)):
                    evaluated = log.evaluate(evaluators, state, done)
                stopping = should_stop(done) and not last
                checkpointer.check()
                checkpointer.save(
                    done, state, metadata, metrics=evaluated or None, force=last or stopping
                )
                if stopping:
                    logging.info("%s stops at step %d; the same command resumes.", name, done)
                    break
            log.flush()
        finally:
            stream.close()
            writer.close()
            checkpointer.close()
    return state


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _check_same_tokenizer(saved: dict, metadata: dict, workdir: epath.PathLike) -> None:
    before, now = saved.get("tokenizer_fingerprint"), metadata.get("tokenizer_fingerprint")
    if before != now:
        raise ValueError(
            f"The run in {workdir} was started with the tokenizer {str(before)[:12]}, but this "
            f"command names {str(now)[:12]}; give the same tokenizer or another workdir."
        )


def _start_from(state: TrainState, params: Any) -> TrainState:
    """The state at step 0 with other parameters, laid out as its own."""

    def place(new, old):
        return jax.device_put(np.asarray(new, old.dtype), old.sharding)

    ema = None if state.ema is None else jax.tree.map(place, params, state.ema)
    return state.replace(params=jax.tree.map(place, params, state.params), ema=ema)


class _Log:
    """Reads each step's metrics one step late, so that the devices never wait for the host."""

    def __init__(self, name, settings, writer, start, learning_rate, flops_per_image, peak_flops):
        self._settings, self._writer = settings, writer
        self._learning_rate = learning_rate
        self._flops, self._peak = flops_per_image, peak_flops
        self._progress = Progress(name, start, settings.num_steps, settings.batch_size)
        self._pending: tuple[int, Any] | None = None
        self._losses: collections.deque = collections.deque(maxlen=_SPIKE_WINDOW)
        self._window: list[dict[str, float]] = []
        self._wait = 0.0
        self._skipped = 0

    def add(self, step: int, metrics: Any, wait: float) -> None:
        previous, self._pending = self._pending, (step, metrics)
        self._wait += wait
        if previous is not None:
            self._read(*previous)

    def flush(self) -> None:
        if self._pending is not None:
            previous, self._pending = self._pending, None
            self._read(*previous)

    def evaluate(self, evaluators, state, step) -> dict[str, float]:
        """Runs the evaluators; their time does not count as training time."""
        self.flush()
        began = time.perf_counter()
        found: dict[str, Any] = {}
        for evaluator in evaluators:
            result = evaluator(state, step)
            found |= result.metrics
            for name, image in result.images.items():
                self._writer.image(step, name, image)
        found = {f"eval/{k}": v for k, v in flatten(found).items()}
        self._writer.write(step - 1, found)
        self._progress.pause(time.perf_counter() - began)
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
        if _due(step + 1, self._settings.log_every):
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
        names = self._window[-1]
        mean = {k: statistics.fmean(m[k] for m in self._window if k in m) for k in names}
        mean.pop("skipped_in_row")
        mean["skipped"] = self._skipped
        rates = self._progress.rates(step + 1)
        shown = {k: mean[k] for k in ("loss", "accuracy_mean", "psnr") if k in mean}
        self._progress.show(step + 1, shown, rates)
        if self._flops:
            chip = self._flops * rates["images_per_second_per_chip"]
            rates["teraflops_per_second_per_chip"] = chip / 1e12
            if self._peak:
                rates["model_flop_utilisation"] = chip / self._peak
        if self._learning_rate is not None:
            rates["learning_rate"] = float(self._learning_rate(step))
        memory = jax.local_devices()[0].memory_stats() or {}
        if "peak_bytes_in_use" in memory:
            rates["peak_memory_gib"] = memory["peak_bytes_in_use"] / 2**30
        rates["data_wait_ms"] = 1e3 * self._wait / len(self._window)
        self._writer.write(step, mean | rates)
        self._window, self._wait = [], 0.0
