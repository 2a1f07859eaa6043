"""A training step beside a frozen model of the same size: what it takes at least, to plan."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from var_jax.objectives.base import Aux
from var_jax.objectives.likelihood import Likelihood


@dataclasses.dataclass(frozen=True)
class AgainstReference:
    """-log sigmoid of an example's log likelihood ratio to a frozen reference model.

    What every objective with a reference model or a teacher computes at least: both models'
    passes over the batch, one of them with a gradient. `frozen` is that of the likelihood and
    'reference', parameters like those that train.

    Attributes:
      likelihood: of what trains, and of the reference.
    """

    likelihood: Likelihood

    def init_params(self, key: jax.Array) -> Any:
        return self.likelihood.init_params(key)

    def init_stats(self) -> Any:
        return self.likelihood.init_stats()

    def loss(self, params, frozen, stats, batch, keys, step):
        """See `Objective.loss`."""
        _, here = self.likelihood.per_token(params, frozen, batch, keys)
        _, there = self.likelihood.per_token(frozen["reference"], frozen, batch)
        ratio = there["loss"].sum(-1) - here["loss"].sum(-1)
        value = -jax.nn.log_sigmoid(ratio).mean()
        return value, Aux({"loss": value, "ratio": ratio.mean()})

    def after_update(self, params, ema, stats, carry, key, step):
        return params, ema, stats
