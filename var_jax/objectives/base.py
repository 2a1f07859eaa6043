"""The contract of an objective: what a training step minimises.

One trainer serves every objective. An objective is a frozen dataclass of modules and
settings with pure methods; parameters that do not train come in as `frozen`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import flax
import jax

from var_jax.fields import Field
from var_jax.network import Network
from var_jax.objectives.curriculum import TrainedLevels


@flax.struct.dataclass
class Aux:
    """What a loss gives beside its value.

    Attributes:
      metrics: float32 scalars or small arrays by name, means over the batch; averaged over
        microbatches.
      carry: a tree of arrays for `after_update` with the examples on axis 0; those of all
        microbatches are put together.
    """

    metrics: dict[str, jax.Array]
    carry: Any = None


class Objective(Protocol):
    """What a training step minimises."""

    def init_params(self, key: jax.Array) -> Any:
        """Parameters at initialisation, in the boxes that hold their logical axis names."""

    def init_stats(self) -> Any:
        """State that is not trained by gradient, such as usage counts; () for none."""

    def loss(
        self, params: Any, frozen: Any, stats: Any, batch: Any, keys: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, Aux]:
        """The loss of a batch.

        Args:
          params: what trains.
          frozen: what does not: tokenizer, reference or teacher parameters.
          stats: see `init_stats`.
          batch: dict of arrays with the examples on axis 0.
          keys: one PRNG key an example [B]; random choices come from these only.
          step: int32 scalar, the number of updates so far.

        Returns:
          float32 scalar, Aux.
        """

    def after_update(
        self, params: Any, ema: Any, stats: Any, carry: Any, key: jax.Array, step: jax.Array
    ) -> tuple[Any, Any, Any]:
        """Changes to parameters and stats that no gradient makes, after the optimizer.

        Args:
          params, stats: after the update.
          ema: moving average of the parameters, which this step has not reached yet, or None.
            Where parameters begin anew, so must it: averaged with what was there before, they
            would be neither.
          carry: of this step's `Aux`, for the whole batch.
          key: one PRNG key for the step.
          step: int32 scalar, the number of updates before this one.

        Returns:
          params, ema, stats.
        """


@dataclasses.dataclass(frozen=True)
class FrozenPart:
    """Parameters that an objective reads and does not train.

    Attributes:
      init: key -> such parameters in the boxes of their logical axis names: their shapes, and how
        they can be cut.
      as_trained: cut over the mesh as what trains is (config.sharding): a reference of the model's
        own size does not fit otherwise. False: by config.frozen_sharding.
      load: () -> the parameters, NumPy arrays; None where they come from elsewhere.
    """

    init: Callable[[jax.Array], Any]
    as_trained: bool = False
    load: Callable[[], Any] | None = None


class NetworkObjective(Objective, Protocol):
    """An objective that trains a network over a tokenizer's targets.

    Attributes:
      network: what trains, and what a checkpoint of the run holds.
      fields: what of a batch it reads.
      passes: of a network over each example in a step; a backward pass counts as two.
      trained: the levels that they go over; None is all.
    """

    network: Network
    passes: int
    trained: TrainedLevels | None

    @property
    def fields(self) -> tuple[Field, ...]:
        """See the class."""

    @property
    def held_out(self) -> Any:
        """What scores held-out examples: an objective with the method `per_token` of `Likelihood`.
        Mostly the likelihood itself, so that what is compared is the head's own loss."""

    def at(self, step: int) -> NetworkObjective:
        """The objective of a step; few distinct ones, each is compiled once."""

    def frozen_parts(self) -> dict[str, FrozenPart]:
        """What `frozen` is made of: 'tokenizer'; 'reference', the model that the run starts from,
        where it is needed; 'text_encoder', where the condition has one."""


@runtime_checkable
class PartialObjective(NetworkObjective, Protocol):
    """An objective that trains a part of its network; it starts from a network that is there.

    Attributes:
      trains: patterns of the parameters that train, such as 'masked/*'. The others stay as they are
        to the bit, and the optimizer keeps nothing of them.
    """

    trains: tuple[str, ...]


def split_keys(keys: jax.Array | None, count: int) -> tuple[jax.Array | None, ...]:
    """So many keys of each example's [B]; None of each, as in evaluation, where there are none."""
    if keys is None:
        return (None,) * count
    parts = jax.vmap(lambda key: jax.random.split(key, count))(keys)
    return tuple(parts[:, i] for i in range(count))
