"""A model from whatever a path names: a workdir, or an official file; and its text encoder."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from jax.sharding import Mesh

from var_jax import checkpoint
from var_jax.build.loading import (
    LoadedTokenizer,
    LoadedTransformer,
    load_tokenizer,
    load_transformer,
)
from var_jax.build.official_models import OFFICIAL_FILES, load_official
from var_jax.text_encoders.encoder import T5Encoder
from var_jax.transformer.text_features import TextFeatures


def load_any(
    path: str,
    tokenizer: str | None,
    patch_nums: Sequence[int] | None,
    group: str | None,
    text_encoder: str | None,
    mesh: Mesh,
) -> tuple[LoadedTokenizer, LoadedTransformer | None]:
    """A tokenizer and maybe a transformer, on the mesh; for the arguments see `var_jax.load`."""
    loaded: LoadedTransformer | None = None
    if path.endswith(OFFICIAL_FILES):
        found, loaded = load_official(path, tokenizer, patch_nums, group, mesh)
    elif checkpoint.inspect(path).metadata.get("kind") == "tokenizer":
        found = load_tokenizer(path).on(mesh)
    else:
        loaded = load_transformer(path, tokenizer, mesh=mesh, for_sampling=True)
        found = loaded.tokenizer
    if text_encoder is not None:
        if loaded is None:
            raise ValueError(f"{path} is a tokenizer, which asks no text encoder; leave it out.")
        loaded = with_text_encoder(loaded, text_encoder)
    return found, loaded


def with_text_encoder(loaded: LoadedTransformer, folder: str) -> LoadedTransformer:
    """The model with the encoder in a folder, see `T5Encoder`, in place of its config's.

    Raises:
      ValueError: it reads no text features.
    """
    transformer = loaded.network.transformer
    conditioner = transformer.conditioning()
    if not isinstance(conditioner, TextFeatures):
        raise ValueError(
            f"A text encoder is given ({folder}), but this model's condition is "
            f"{type(conditioner).__name__}, which reads none; leave it out."
        )
    config = loaded.config.copy_and_resolve_references()
    with config.unlocked():
        config.model.conditioner.encoder = folder
    asked = conditioner.clone(encoder=T5Encoder(folder))
    network = dataclasses.replace(loaded.network, transformer=transformer.clone(conditioner=asked))
    return dataclasses.replace(loaded, network=network, config=config)
