"""Likelihood against a frozen reference: what CCA, DDO, DPO and their like are functions of."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from var_jax.codecs.base import Lesson
from var_jax.objectives.base import FrozenPart
from var_jax.objectives.likelihood import BesideLikelihood


class LogRatio(BesideLikelihood):
    """What objectives have in common that compare a network with the one that the run starts from.

    Both run as in evaluation, without drop path or dropout of the condition: the ratio of two
    models that drop different things would be noise.
    """

    #: Two forward passes of the reference, two forward and backward ones of what trains.
    passes = 8
    #: Whole pyramids are compared.
    trained = None

    def frozen_parts(self) -> dict[str, FrozenPart]:
        """See `NetworkObjective`."""
        reference = FrozenPart(self.network.init_params, as_trained=True)
        return {**super().frozen_parts(), "reference": reference}

    def log_ratio(
        self, params: Any, frozen: Any, lesson: Lesson, given: Any
    ) -> tuple[Float[jax.Array, " B"], dict[str, jax.Array]]:
        """log p(tokens | given) - log p_reference(tokens | given) of each example, in nats.

        Args:
          params, frozen: see `Objective.loss`.
          lesson: of the tokens.
          given: what they are conditioned on.

        Returns:
          It, and what the head reports of each token, [B, L]; 'loss' is -log p.
        """
        here = self._per_token(params, lesson, given)
        there = self._per_token(frozen["reference"], lesson, given)
        # Token by token first: their sums are large, and nearly the same.
        return (there["loss"] - here["loss"]).sum(-1), here

    def without(self, given: Any, null: Bool[jax.Array, " B"]) -> Any:
        """What is given, but nothing where `null` is true."""

        def choose(x: jax.Array, nothing: jax.Array) -> jax.Array:
            return jnp.where(null.reshape(-1, *[1] * (x.ndim - 1)), nothing, x)

        return jax.tree.map(choose, given, self.network.transformer.conditioning().null(given))

    def _per_token(self, params: Any, lesson: Lesson, given: Any) -> dict[str, jax.Array]:
        pyramid = self.network.transformer.pyramid
        hidden, _ = self.network.hidden(params, lesson.inputs, given)
        return self.network.loss(params, hidden, lesson.targets, None, pyramid)[1]
