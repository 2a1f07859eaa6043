"""The contract of an adapter, and the objective that trains one in place of a network."""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import jax

from var_jax.fields import Field
from var_jax.network import Network
from var_jax.objectives.base import Aux, FrozenPart, NetworkObjective
from var_jax.objectives.curriculum import TrainedLevels


class Adapter(Protocol):
    """Parameters of its own that turn those of a network into others of the same shapes."""

    def init_params(self, network: Network, key: jax.Array) -> Any:
        """Parameters that change nothing yet, in the boxes of their logical axis names.

        Args:
          network: whose parameters it changes.
          key: of what is random.

        Raises:
          ValueError: the network has no such parameters.
        """

    def apply(self, params: Any, base: Any) -> Any:
        """The network's parameters as they are used.

        Args:
          params: the adapter's.
          base: the network's, as they were before.
        """


@dataclasses.dataclass(frozen=True)
class Adapted:
    """An objective of a network, of which an adapter trains and the network itself does not.

    The parameters are the adapter's. The network's stay in the frozen part `reference`, the model
    that the run starts from, which an objective that compares with it reads too.

    Attributes:
      objective: what is minimised.
      adapter: what trains.
    """

    objective: NetworkObjective
    adapter: Adapter

    @property
    def network(self) -> Network:
        """See `NetworkObjective`."""
        return self.objective.network

    @property
    def passes(self) -> int:
        """See `NetworkObjective`. Products are of the network's size, gradients too."""
        return self.objective.passes

    @property
    def trained(self) -> TrainedLevels | None:
        """See `NetworkObjective`."""
        return self.objective.trained

    @property
    def fields(self) -> tuple[Field, ...]:
        """See `NetworkObjective`."""
        return self.objective.fields

    def at(self, step: int) -> Adapted:
        """See `NetworkObjective`."""
        return dataclasses.replace(self, objective=self.objective.at(step))

    def frozen_parts(self) -> dict[str, FrozenPart]:
        """See `NetworkObjective`."""
        reference = FrozenPart(self.network.init_params, as_trained=True)
        return {**self.objective.frozen_parts(), "reference": reference}

    def init_params(self, key: jax.Array) -> Any:
        """The adapter's."""
        return self.adapter.init_params(self.network, key)

    def init_stats(self) -> Any:
        """See `Objective`."""
        return self.objective.init_stats()

    def loss(
        self, params: Any, frozen: Any, stats: Any, batch: Any, keys: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, Aux]:
        """See `Objective.loss`."""
        params = self.adapter.apply(params, frozen["reference"])
        return self.objective.loss(params, frozen, stats, batch, keys, step)

    def after_update(
        self, params: Any, ema: Any, stats: Any, carry: Any, key: jax.Array, step: jax.Array
    ) -> tuple[Any, Any, Any]:
        """See `Objective.after_update`."""
        return self.objective.after_update(params, ema, stats, carry, key, step)
