"""Which text encoder a model of text features asks."""

from __future__ import annotations

import dataclasses

from var_jax.build.loading import LoadedTransformer
from var_jax.text_encoders.encoder import T5Encoder
from var_jax.transformer.text_features import TextFeatures


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
