"""What a run carries from step to step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax

from var_jax import subsets
from var_jax.objectives.base import Objective


@flax.struct.dataclass
class TrainState:
    """Everything that a checkpoint holds and a step changes.

    Attributes:
      step: int32 scalar, updates tried so far, skipped ones included.
      params: what trains, float32.
      opt_state: the optimizer's state, of the parameters that train.
      ema: exponential moving average of the parameters, or None.
      stats: the objective's untrained state.
      skipped: int32 scalar, updates skipped in a row because something was not finite.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    ema: Any
    stats: Any
    skipped: jax.Array

    def evaluation_params(self) -> Any:
        """The moving average if there is one, else the parameters."""
        return self.params if self.ema is None else self.ema


def create(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    key: jax.Array,
    ema: bool,
    trained: Sequence[str] = (),
) -> TrainState:
    """The state at step 0, parameters in the boxes that hold their logical axis names.

    Args:
      objective: makes the parameters.
      optimizer: makes its own state.
      key: of what is random.
      ema: keep a moving average.
      trained: patterns of the parameters that train, see `subsets.split`; () is all.
    """
    params = objective.init_params(key)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(subsets.split(params, trained)[0]),
        # A copy: state and average are donated separately.
        ema=jax.tree.map(jnp.copy, params) if ema else None,
        stats=objective.init_stats(),
        skipped=jnp.zeros((), jnp.int32),
    )
