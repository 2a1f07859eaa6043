"""Adapters of a config: their checkpoints, which hold a change of a base and not the base."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict

from var_jax import checkpoint
from var_jax.adapters.base import Adapted, Adapter
from var_jax.build import registry
from var_jax.build.sections import opened, tuples
from var_jax.checkpoint import files
from var_jax.network import Network
from var_jax.parallel import sharding
from var_jax.train.experiment import Evaluation, Evaluator
from var_jax.train.state import TrainState

#: Folder of a workdir in which a run keeps the model that it starts from: what it compares with, or
#: what its adapter changes.
REFERENCE = "reference"


def described(config: ConfigDict) -> dict[str, Any]:
    """What the checkpoints of a run say of its adapter: nothing, or {'adapter': its section}."""
    chosen = tuples(config.get("train", {})).get("adapter")
    return {"adapter": dict(opened(chosen))} if chosen else {}


def adapter_of(metadata: Mapping[str, Any]) -> Adapter | None:
    """The adapter that a checkpoint holds in place of a network, by its metadata."""
    values = metadata.get("adapter")
    return registry.make("adapter", values, "The checkpoint's adapter") if values else None


def base_folder(path: epath.PathLike) -> epath.Path:
    """Where the model lies that an adapter changes.

    Args:
      path: workdir of the adapter, or one of its steps.
    """
    return files.locate(path)[0].parent / REFERENCE


def restore_base(path: epath.PathLike, metadata: Mapping[str, Any], target: Any = None) -> Any:
    """The parameters that an adapter changes.

    Args:
      path: see `base_folder`.
      metadata: of its checkpoint.
      target: as `Checkpointer.restore_params` takes it; None is NumPy arrays.

    Raises:
      FileNotFoundError: they are not there.
      ValueError: they are others than those it was trained on.
    """
    folder, expected = base_folder(path), metadata["reference_fingerprint"]
    if not files.complete_steps(files.locate(folder)[0]):
        raise FileNotFoundError(
            f"{path} holds an adapter of the transformer {expected[:12]}, which is not in "
            f"{folder}; put it there, or merge the adapter where it is (launch.merge_adapter)."
        )
    with checkpoint.Checkpointer(folder, read_only=True) as reader:
        there = reader.read_metadata().get("fingerprint")
        if there != expected:
            raise ValueError(
                f"The transformer in {folder} ({str(there)[:12]}) is not the one that the adapter "
                f"in {path} was trained on ({expected[:12]}); put that one there."
            )
        return reader.restore_params("params", target, as_numpy=target is None)[0]


def abstract_adapter(adapter: Adapter, network: Network, mesh: Any, preset: Any) -> Any:
    """An adapter's parameters as ShapeDtypeStructs with their shardings."""
    boxed = jax.eval_shape(lambda key: adapter.init_params(network, key), jax.random.key(0))
    return sharding.abstract_state(boxed, mesh, preset)


@dataclasses.dataclass(frozen=True)
class OfMerged:
    """An evaluator of networks, for a training whose parameters are an adapter's.

    Attributes:
      evaluator: see the class.
      merge: from the adapter's parameters to the network's.
    """

    evaluator: Evaluator
    merge: Callable[[Any], Any]

    def __call__(self, state: TrainState, step: int) -> Evaluation:
        """See `Evaluator`."""
        params = self.merge(state.evaluation_params())
        return self.evaluator(state.replace(params=params, ema=None), step)


def of_merged(
    evaluators: list[Evaluator], training: Adapted, frozen: Mapping[str, Any]
) -> list[Evaluator]:
    """The same evaluators for an adapter's training with such frozen parameters."""
    base = frozen[REFERENCE]
    layout = jax.tree.map(lambda x: x.sharding, base)
    apply = jax.jit(training.adapter.apply, out_shardings=layout)
    return [OfMerged(evaluator, lambda params: apply(params, base)) for evaluator in evaluators]
