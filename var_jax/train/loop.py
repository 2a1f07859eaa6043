"""The training loop: restore, then step, log, save, evaluate until the end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath

from var_jax import subsets
from var_jax.checkpoint import Checkpointer
from var_jax.data.prefetch import prefetch_to_device
from var_jax.objectives.base import Objective
from var_jax.parallel import arrays, sharding
from var_jax.train.experiment import Experiment, SavedBeside
from var_jax.train.log import TrainLog, due
from var_jax.train.metrics import MetricWriter
from var_jax.train.state import TrainState, create
from var_jax.train.step import jit_train_step, make_train_step


def train(
    experiment: Experiment,
    workdir: epath.PathLike,
    should_stop: Callable[[int], bool] = lambda step: False,
) -> TrainState:
    """Trains until settings.num_steps, from the newest checkpoint in `workdir` if there is one.

    Batch and random choices of a step depend on the seed and the step only, so that an
    interrupted run ends with the same bits as an undisturbed one. A step is saved before it is
    evaluated: an evaluator that fails costs no work, and does not fail again after a restart.

    Args:
      experiment: what to train.
      workdir: gets checkpoints/, metrics.jsonl, tensorboard/ and samples/.
      should_stop: asked after each step; True saves and returns.

    Returns:
      The final state; its step is smaller than num_steps if it was stopped.

    Raises:
      TrainingDiverged: max_skipped updates in a row were not finite.
      CheckpointError: a checkpoint could not be written.
    """
    settings, mesh, preset = experiment.settings, experiment.mesh, experiment.preset
    local = sharding.check_batch(settings.batch_size, mesh, settings.microbatches)
    checkpointer = Checkpointer(
        workdir,
        max_to_keep=settings.max_to_keep,
        best_metric=settings.best_metric or None,
    )
    everywhere = sharding.replicated_sharding(mesh)
    for folder, model in experiment.beside.items():
        _save_beside(epath.Path(workdir) / folder, model, everywhere)

    with sharding.activate(mesh, preset):
        state, start = _restore_or_init(experiment, checkpointer, workdir)
        shardings = jax.tree.map(lambda x: x.sharding, state)
        frozen = arrays.put_host_arrays(experiment.frozen, everywhere)
        chosen, _ = subsets.split(state.params, experiment.trained)
        total, size = (sum(x.size for x in jax.tree.leaves(p)) for p in (state.params, chosen))
        logging.info(
            "%s: %.2fM parameters%s, %d steps of %d images (%d a device at a time), mesh %s, %s.",
            experiment.name,
            total / 1e6,
            f", of which {size / 1e6:.2f}M train" if size < total else "",
            settings.num_steps,
            settings.batch_size,
            local,
            dict(mesh.shape),
            mesh.devices.flat[0].device_kind,
        )
        if start >= settings.num_steps:
            logging.info("%s in %s is done.", experiment.name, workdir)
            checkpointer.close()
            return state

        compiled: dict[Objective, Any] = {}
        writer = MetricWriter(workdir, start, settings.wandb_project)
        log = TrainLog(experiment, writer, start)

        def run_step(step: int, state: TrainState, batch: Any) -> tuple[TrainState, Any]:
            objective = experiment.objective_at(step)
            known = compiled.get(objective)
            if known is not None:
                return known(state, frozen, batch)
            function = make_train_step(
                objective,
                experiment.optimizer,
                experiment.seed,
                settings.microbatches,
                settings.ema_decay,
                experiment.trained,
            )
            compiled[objective] = jit_train_step(function, shardings, mesh)
            # Running is asynchronous: the first call takes as long as compiling does.
            with log.timed("compilation"):
                return compiled[objective](state, frozen, batch)

        stream = prefetch_to_device(
            experiment.batches(start), sharding.batch_sharding(mesh), settings.batch_size
        )
        profiling = False
        try:
            for step in range(start, settings.num_steps):
                if settings.profile_steps and step == settings.profile_start:
                    jax.profiler.start_trace(str(epath.Path(workdir) / "profile"))
                    profiling = True
                batch, wait = next(stream)
                with jax.transfer_guard("disallow"):
                    state, metrics = run_step(step, state, batch)
                log.add(step, metrics, wait)
                if profiling and step + 1 >= settings.profile_start + settings.profile_steps:
                    jax.block_until_ready(state)
                    jax.profiler.stop_trace()
                    profiling = False

                done = step + 1
                last = done == settings.num_steps
                stopping = should_stop(done) and not last
                # Who stops has little time left: a preempted machine goes in seconds.
                evaluating = experiment.evaluators and not stopping
                evaluating = evaluating and (last or due(done, settings.evaluate_every))
                checkpointer.check()
                if last or stopping or evaluating or due(done, settings.save_every):
                    # No step before the checkpoint is missing from the log of the next run.
                    log.flush()
                    writer.copy_soon()
                    with log.timed("checkpoint"):
                        checkpointer.save(done, state, experiment.metadata)
                if evaluating:
                    found = log.evaluate(experiment.evaluators, state, done)
                    checkpointer.note_metrics(done, found)
                if stopping:
                    logging.info(
                        "%s stops at step %d; the same command resumes.", experiment.name, done
                    )
                    break
            log.flush()
        finally:
            stream.close()
            writer.close()
            checkpointer.close()
    return state


def _restore_or_init(
    experiment: Experiment, checkpointer: Checkpointer, workdir: epath.PathLike
) -> tuple[TrainState, int]:
    """The state, each device holding its own part of it only, and the steps done."""
    ema = experiment.settings.ema_decay > 0

    def init(key: jax.Array) -> TrainState:
        objective, optimizer = experiment.objective_at(0), experiment.optimizer
        return create(objective, optimizer, key, ema, experiment.trained)

    key = jax.random.key(experiment.seed)
    mesh, preset = experiment.mesh, experiment.preset
    if checkpointer.latest_step() is None:
        state, _ = sharding.init_sharded(init, key, mesh=mesh, preset=preset)
        if experiment.initial_params is not None:
            state = _start_from(state, experiment.initial_params)
        return state, 0
    abstract = sharding.abstract_state(jax.eval_shape(init, key), mesh, preset)
    state, saved, start = checkpointer.restore(abstract)
    _check_same_tokenizer(saved, experiment.metadata, workdir)
    logging.info("Resumed %s from step %d in %s.", experiment.name, start, workdir)
    return state, start


def _save_beside(folder: epath.Path, model: SavedBeside, everywhere: Any) -> None:
    with Checkpointer(folder) as checkpointer:
        if checkpointer.latest_step() is None:
            state = {"params": arrays.put_host_arrays(model.params, everywhere)}
            checkpointer.save(0, state, model.metadata)
            return
        there = checkpointer.read_metadata().get("fingerprint")
        if there != model.metadata.get("fingerprint"):
            raise ValueError(
                f"{folder} holds another model than the one that this run starts from, left there "
                "by a run that was never saved; remove it, or give another workdir."
            )


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
        return arrays.place(np.asarray(new, old.dtype), old.sharding)

    ema = None if state.ema is None else jax.tree.map(place, params, state.ema)
    return state.replace(params=jax.tree.map(place, params, state.params), ema=ema)
