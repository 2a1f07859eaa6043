"""What the training loop is given."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np
import optax

from var_jax.objectives.base import Objective
from var_jax.parallel.sharding import Rules
from var_jax.settings import Changeable
from var_jax.train.state import TrainState


@dataclasses.dataclass(frozen=True)
class TrainSettings:
    """Settings of the loop.

    Attributes:
      num_steps: updates of the whole training.
      batch_size: over all devices and microbatches.
      microbatches: parts of a batch that a device works on one after the other.
      ema_decay: of the parameters' moving average; 0 keeps none.
      log_every, save_every, evaluate_every: in steps; 0 is only at the end (log_every: never). A
        step that is evaluated is saved first.
      max_to_keep: newest checkpoints that stay.
      best_metric: the checkpoint with its lowest value also stays; '' is off.
      max_skipped: non-finite updates in a row after which the run stops.
      profile_start, profile_steps: steps that the profiler records into workdir/profile.
      wandb_project: see `MetricWriter`.
    """

    num_steps: int
    batch_size: int
    microbatches: Changeable[int] = 1
    ema_decay: float = 0.0
    log_every: Changeable[int] = 50
    save_every: Changeable[int] = 1000
    evaluate_every: Changeable[int] = 0
    max_to_keep: Changeable[int] = 3
    best_metric: Changeable[str] = ""
    max_skipped: Changeable[int] = 10
    profile_start: Changeable[int] = 0
    profile_steps: Changeable[int] = 0
    wandb_project: Changeable[str] = ""


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


@dataclasses.dataclass(frozen=True)
class SavedBeside:
    """A frozen model that a run's workdir keeps, so that the run is whole.

    Attributes:
      params: on the mesh, or on the host.
      metadata: as `Checkpointer.save` takes it; where it has a fingerprint, the workdir must not
        hold another model.
    """

    params: Any
    metadata: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A training: what is minimised, on what, how, where.

    Attributes:
      name: in the progress line.
      objective_at: objective of a step; few distinct ones, each is compiled once.
      optimizer: updates the parameters.
      batches: start step -> this process's rows of the batches from there on; see `Pipeline`.
      settings: see `TrainSettings`.
      mesh, preset: see `var_jax.parallel.sharding`.
      metadata: what the checkpoint says beside the state; JSON.
      seed: of parameters and all random choices.
      frozen: parameters that do not train, on the mesh, placed once for all who use them; host
        arrays are replicated.
      learning_rate: schedule, to be logged.
      flops_per_image: floating-point operations of a training step for one image, by step, for
        TFLOP/s; None where unknown.
      peak_flops: of one chip a second, for the utilisation; 0 where unknown.
      evaluators: run every settings.evaluate_every steps and at the end.
      trained: patterns of the parameters that train, see `subsets.split`; () is all.
      initial_params: host arrays to start from in place of random parameters (fine-tuning).
      beside: models saved in the workdir, by folder name.
    """

    name: str
    objective_at: Callable[[int], Objective]
    optimizer: optax.GradientTransformation
    batches: Callable[[int], Iterator[dict[str, np.ndarray]]]
    settings: TrainSettings
    mesh: jax.sharding.Mesh
    preset: str | Rules
    metadata: dict[str, Any]
    seed: int = 0
    frozen: Any = dataclasses.field(default_factory=dict)
    learning_rate: Callable[[int], Any] | None = None
    flops_per_image: Callable[[int], float] | None = None
    peak_flops: float = 0.0
    evaluators: Sequence[Evaluator] = ()
    trained: Sequence[str] = ()
    initial_params: Any = None
    beside: Mapping[str, SavedBeside] = dataclasses.field(default_factory=dict)
