"""Objectives that learn from another model, which the config names by its workdir."""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from var_jax.build.loading import load_params
from var_jax.build.modules import network as network_of
from var_jax.build.sections import ConfigError
from var_jax.checkpoint import files
from var_jax.network import Network
from var_jax.objectives.distillation import Distillation, Teacher
from var_jax.objectives.level_weights import LevelWeights
from var_jax.tokenizer.vqvae import VQVAE


def distillation(
    network: Network,
    tokenizer: VQVAE,
    tokenizer_fingerprint: str,
    from_images: bool,
    weights: LevelWeights,
    teacher: str = "",
    alpha: float = Distillation.alpha,
    temperature: float = Distillation.temperature,
    first_level: int = Distillation.first_level,
) -> Distillation:
    """`Distillation` from the transformer in a workdir.

    Args:
      network, tokenizer, from_images, weights, alpha, temperature, first_level: see
        `Distillation`.
      tokenizer_fingerprint: of the tokenizer; '' is not compared.
      teacher: workdir of a transformer over the same tokens. Without one a run can be planned, as
        if the teacher were of the model's own size, but not be made.

    Raises:
      ConfigError: a teacher of another tokenizer.
      FileNotFoundError: there is no such checkpoint.
      ValueError: see `Distillation`.
    """
    key = "config.train.objective.teacher"
    settings = (from_images, weights, alpha, temperature, first_level)
    if not teacher:

        def missing() -> Any:
            raise ConfigError(f"{key} is empty; give the workdir of the transformer to learn from.")

        return Distillation(network, tokenizer, Teacher(network, missing), *settings)
    metadata = files.inspect(teacher).metadata
    if metadata.get("kind") != "transformer":
        raise ConfigError(
            f"{key} is {teacher}, which holds a {metadata.get('kind') or 'checkpoint'}; give the "
            "workdir of a transformer."
        )
    theirs = metadata.get("tokenizer_fingerprint", "")
    if tokenizer_fingerprint and theirs != tokenizer_fingerprint:
        raise ConfigError(
            f"{key} is {teacher}, which was trained with the tokenizer {theirs[:12]}, but the run "
            f"speaks to {tokenizer_fingerprint[:12]}; give a transformer of the same tokenizer."
        )

    def load() -> Any:
        return load_params(teacher, "transformer", None)[0]

    made = Teacher(network_of(ConfigDict(metadata["config"])), load)
    return Distillation(network, tokenizer, made, *settings)
