"""AdamW with the official parameter groups and the official schedules."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

#: Of a step that is a Python number the value is computed on the host, by NumPy.
Schedule = Callable[[Any], Any]

#: Names of parameters that never decay, whatever their shape: biases, position and level
#: tables, shared modulation offsets, attention scales, normalisation gains, what is measured; and
#: of a state space model its rates, step sizes and skip, as its authors advise.
NO_DECAY = (
    "bias",
    "q_bias",
    "v_bias",
    "start_position",
    "position",
    "level",
    "offset",
    "log_scale",
    "scale",
    "A_log",
    "dt_bias",
    "D",
    "moments",
)


def decay_mask(params: Any) -> Any:
    """True for the leaves that weight decay acts on; class and code embeddings among them."""

    def decays(path, _):
        # A leaf in a box ends in the box's attribute; the name is the last dictionary key.
        names = [entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey)]
        return names[-1] not in NO_DECAY

    return jax.tree_util.tree_map_with_path(decays, params)


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Settings of AdamW and its schedules.

    Attributes:
      learning_rate: peak. Officially 1e-4 * batch / 256 (`tblr`).
      schedule: 'lin0' (warm-up, constant for 5% of the rest, linear to the end), 'linear'
        (warm-up, linear), 'cosine' (warm-up, half a cosine) or 'constant' (warm-up only).
      warmup_steps: linear from warmup_factor to 1.
      warmup_factor: learning rate at step 0 over the peak.
      end_factor: learning rate at the last step over the peak (`wpe`).
      weight_decay: at step 0.
      weight_decay_end: at the last step, along half a cosine; None keeps it constant.
      b1, b2, eps: of Adam.
      clip_norm: global gradient norm; 0 is no clipping.
    """

    learning_rate: float
    schedule: str = "lin0"
    warmup_steps: int = 0
    warmup_factor: float = 0.005
    end_factor: float = 0.1
    weight_decay: float = 0.05
    weight_decay_end: float | None = None
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    clip_norm: float = 2.0


SCHEDULES = ("lin0", "linear", "cosine", "constant")


def learning_rate_schedule(config: OptimizerConfig, num_steps: int) -> Schedule:
    """Learning rate by step, float32; the last step, num_steps - 1, has end_factor * peak.

    Raises:
      ValueError: unknown schedule, or a warm-up that fills the whole training.
    """
    if config.schedule not in SCHEDULES:
        raise ValueError(
            f"Unknown learning rate schedule {config.schedule!r}; choose one of "
            f"{', '.join(SCHEDULES)}."
        )
    warmup, peak, end = config.warmup_steps, config.learning_rate, config.end_factor
    if warmup >= num_steps:
        raise ValueError(
            f"warmup_steps {warmup} must be smaller than the {num_steps} steps of training."
        )

    def factor(step):
        xp = jnp if isinstance(step, jax.Array) else np
        step = xp.asarray(step, xp.float32)
        passed = (step - warmup) / max(num_steps - 1 - warmup, 1)
        if config.schedule == "constant":
            after = xp.ones_like(step)
        elif config.schedule == "cosine":
            after = end + (1 - end) * (0.5 + 0.5 * xp.cos(xp.pi * passed))
        else:
            flat = 0.05 if config.schedule == "lin0" else 0.0
            after = xp.where(passed < flat, 1.0, end + (1 - end) * (1 - passed) / (1 - flat))
        before = config.warmup_factor + (1 - config.warmup_factor) * step / max(warmup, 1)
        return xp.where(step < warmup, before, after)

    return lambda step: peak * factor(step)


def weight_decay_schedule(config: OptimizerConfig, num_steps: int) -> Schedule:
    """Weight decay by step: half a cosine from the start to the end value, float32."""
    start = config.weight_decay
    end = start if config.weight_decay_end is None else config.weight_decay_end

    def decay(step):
        passed = jnp.asarray(step, jnp.float32) / max(num_steps - 1, 1)
        return end + (start - end) * (0.5 + 0.5 * jnp.cos(jnp.pi * passed))

    return decay


def make_optimizer(
    config: OptimizerConfig, num_steps: int
) -> optax.GradientTransformationExtraArgs:
    """Clipping by global norm, Adam, decoupled decay of `decay_mask`, learning rate.

    `update` needs the keyword `step`, the number of updates tried so far: an update that was
    skipped does not hold back the schedules, as officially.
    """
    rate = learning_rate_schedule(config, num_steps)
    decay = weight_decay_schedule(config, num_steps)

    def init(params):
        return optax.EmptyState()

    def update(updates, state, params, *, step, **extra):
        def scaled(update, param, decays):
            return -rate(step) * (update + decay(step) * param if decays else update)

        return jax.tree.map(scaled, updates, params, decay_mask(params)), state

    steps = [
        optax.scale_by_adam(config.b1, config.b2, config.eps),
        optax.GradientTransformationExtraArgs(init, update),
    ]
    if config.clip_norm:
        steps.insert(0, optax.clip_by_global_norm(config.clip_norm))
    return optax.chain(*steps)


def make_group_optimizer(
    configs: dict[str, OptimizerConfig], num_steps: int
) -> optax.GradientTransformationExtraArgs:
    """One optimizer for each top-level entry of the parameters, such as the two of a GAN.

    Unlike optax.multi_transform it leaves no masked leaves in the state, which would keep the
    logical axis names of parameters that are not there.
    """
    groups = {name: make_optimizer(config, num_steps) for name, config in configs.items()}

    def init(params):
        return {name: group.init(params[name]) for name, group in groups.items()}

    def update(updates, state, params, **extra):
        found = {
            name: group.update(updates[name], state[name], params[name], **extra)
            for name, group in groups.items()
        }
        return {n: u for n, (u, _) in found.items()}, {n: s for n, (_, s) in found.items()}

    return optax.GradientTransformationExtraArgs(init, update)
