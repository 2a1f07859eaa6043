"""What an objective reads and does not train: where it lies on the mesh."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from var_jax import checkpoint
from var_jax.build.adapters import REFERENCE
from var_jax.build.loading import LoadedTokenizer
from var_jax.objectives.base import FrozenPart, NetworkObjective
from var_jax.parallel import arrays, sharding


@dataclasses.dataclass(frozen=True)
class Reference:
    """The model that a run starts from, for objectives that compare with it or adapt it.

    Attributes:
      params: {'transformer': ..., 'head': ...}, on the host or on the mesh.
      fingerprint: of params.
    """

    params: Any
    fingerprint: str


def saved_reference(
    workdir: epath.PathLike, objective: NetworkObjective, config: ConfigDict, mesh: Mesh
) -> Reference:
    """What a run that goes on keeps in its workdir, read straight to where it is used.

    Raises:
      FileNotFoundError: it is not there.
    """
    target = abstract(objective, config, mesh)[REFERENCE]
    with checkpoint.Checkpointer(epath.Path(workdir) / REFERENCE, read_only=True) as reader:
        params, metadata, _ = reader.restore_params("params", target)
    return Reference(params, metadata["fingerprint"])


def preset_of(config: ConfigDict, part: FrozenPart) -> str:
    """The sharding preset by which a part is laid out."""
    if part.as_trained:
        return config.sharding
    return config.get("frozen_sharding", "replicated")


def abstract(objective: NetworkObjective, config: ConfigDict, mesh: Mesh) -> dict[str, Any]:
    """The objective's frozen parameters as ShapeDtypeStructs with their shardings."""
    found = {}
    for name, part in objective.frozen_parts().items():
        boxed = jax.eval_shape(part.init, jax.random.key(0))
        found[name] = sharding.abstract_state(boxed, mesh, preset_of(config, part))
    return found


def place(
    objective: NetworkObjective,
    config: ConfigDict,
    mesh: Mesh,
    tokenizer: LoadedTokenizer,
    reference: Reference | None = None,
) -> dict[str, Any]:
    """The objective's frozen parameters on the mesh.

    Args:
      objective: says which it needs.
      config: of the training.
      mesh: of the training.
      tokenizer: its parameters on the mesh, which are not copied.
      reference: the model that the run starts from, where the objective needs it.

    Raises:
      ValueError: there is no reference, but the objective needs one.
    """
    placed = {}
    for name, part in objective.frozen_parts().items():
        boxed = jax.eval_shape(part.init, jax.random.key(0))
        if name == "tokenizer":
            placed[name] = {key: tokenizer.params.get(key, {}) for key in boxed}
        elif part.load is not None:
            layout = sharding.abstract_shardings(boxed, mesh, preset_of(config, part))
            placed[name] = arrays.place(part.load(), layout)
        elif reference is None:
            raise ValueError(
                f"{type(objective).__name__} reads the model that the run starts from; give "
                "--config.train.initial_checkpoint=<workdir of a transformer>."
            )
        else:
            layout = sharding.abstract_shardings(boxed, mesh, preset_of(config, part))
            placed[name] = arrays.place(reference.params, layout)
    return placed
