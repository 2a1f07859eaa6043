"""What a training evaluates, from config.evaluation."""

from __future__ import annotations

from typing import Any

import jax
from absl import logging
from ml_collections import ConfigDict

from var_jax.adapters.base import Adapted
from var_jax.build.adapters import of_merged
from var_jax.build.data import pipeline, source
from var_jax.build.evaluation import EvaluationSettings, FIDSettings
from var_jax.build.loading import LoadedTokenizer, load_decoder
from var_jax.build.sections import ConfigError
from var_jax.data.pipeline import Pipeline
from var_jax.decoding.asking import request
from var_jax.decoding.images import ImageSampler
from var_jax.evaluation.during_training import (
    Every,
    Reconstruction,
    SampleGrid,
    SmallFID,
    ValidationLoss,
)
from var_jax.evaluation.generated.adm import read_reference
from var_jax.evaluation.inception.extractor import FeatureExtractor, MeshExtractor
from var_jax.evaluation.inception.weights import load_inception
from var_jax.evaluation.token_likelihood import TokenLikelihood
from var_jax.objectives.base import NetworkObjective
from var_jax.parallel import sharding
from var_jax.tokenizer.vqvae import VQVAE
from var_jax.train.experiment import Evaluator
from var_jax.transformer.condition import ReadsText
from var_jax.transformer.var import VAR


def transformer_evaluators(
    config: ConfigDict,
    settings: EvaluationSettings,
    tokenizer: LoadedTokenizer,
    objective: NetworkObjective,
    frozen: Any,
    held_out: Pipeline,
    mesh: jax.sharding.Mesh,
) -> list[Evaluator]:
    """The evaluators of a transformer's training, in the order in which they run.

    Args:
      config: of the training.
      settings: see `build.evaluation_settings`.
      tokenizer: of the tokens, its parameters on the mesh where an evaluator decodes or encodes.
      objective, frozen: of the training, and its frozen parameters, on the mesh.
      held_out: what the objective reads, one pass in order.
      mesh: of the training.

    Raises:
      FileNotFoundError, ValueError: files of the FID are missing or not what they should be.
    """
    if isinstance(objective, Adapted):
        inner = objective.objective
        found = transformer_evaluators(config, settings, tokenizer, inner, frozen, held_out, mesh)
        return of_merged(found, objective, frozen)
    found: list[Evaluator] = []
    if settings.likelihood:
        measure = TokenLikelihood(objective, frozen, held_out, mesh, config.sharding)
        found.append(ValidationLoss(measure))
    given, columns = shown_samples(settings, objective.network.transformer)
    if columns or settings.fid is not None:
        sampling = load_decoder(config, tokenizer.fingerprint)
        sampler = ImageSampler(
            objective.network,
            tokenizer.module,
            tokenizer.params,
            sampling.decoder,
            mesh,
            config.sharding,
            decoder_params=sampling.params,
        )
    if columns:
        found.append(SampleGrid(sampler, given, config.seed, columns))
    if settings.reconstructions:
        batch_size = sharding.padded_batch(config.train.batch_size, mesh)
        images = pipeline(
            config, source(config, "val"), batch_size, train=False, mesh=mesh, caption="none"
        )
        found.append(
            Reconstruction(
                tokenizer.module,
                images,
                mesh,
                config.sharding,
                settings.reconstructions,
                tokenizer.params,
            )
        )
    if settings.fid is not None:
        fid = _small_fid(config, settings.fid, sampler, mesh)
        found.append(Every(fid, settings.fid.every, config.train.num_steps))
    return found


def shown_samples(settings: EvaluationSettings, transformer: VAR) -> tuple[Any, int]:
    """What the picture of samples shows: what is asked for, and in how many columns; 0 is none.

    Raises:
      ConfigError: what is to be drawn is not what the model is conditioned on.
    """
    if not isinstance(transformer.conditioning(), ReadsText):
        if settings.prompts:
            raise ConfigError(
                "config.evaluation.prompts is set, but the model is conditioned on classes; leave "
                "it out."
            )
        what: list[Any] = list(range(min(transformer.num_classes, settings.max_classes)))
    elif settings.fid is not None:
        raise ConfigError(
            "config.evaluation.fid draws classes, but the model is conditioned on text; leave it "
            "out."
        )
    else:
        what = list(settings.prompts)
    if not what or not settings.samples_per_class:
        return None, 0
    return request(transformer, what * settings.samples_per_class).given, len(what)


def tokenizer_evaluators(
    config: ConfigDict,
    settings: EvaluationSettings,
    tokenizer: VQVAE,
    held_out: Pipeline,
    mesh: jax.sharding.Mesh,
) -> list[Evaluator]:
    """The evaluators of a tokenizer's training.

    Args:
      config: of the training.
      settings: see `build.evaluation_settings`.
      tokenizer: module.
      held_out: images, one pass in order.
      mesh: of the training.

    Raises:
      FileNotFoundError, ValueError: the Inception weights are missing or not what they should be.
    """
    shown = 16 if settings.reconstructions is None else settings.reconstructions
    extractor = None
    if settings.rfid:
        extractor = MeshExtractor(load_inception(settings.rfid), mesh, ("2048",))
    return [Reconstruction(tokenizer, held_out, mesh, config.sharding, shown, extractor=extractor)]


def _small_fid(
    config: ConfigDict, settings: FIDSettings, sampler: ImageSampler, mesh: jax.sharding.Mesh
) -> SmallFID:
    weights = load_inception(settings.inception)
    logging.info("Reading the reference %s.", settings.reference)
    reference = read_reference(
        settings.reference, FeatureExtractor(weights, ("2048",)), keep_features=False
    )
    return SmallFID(
        sampler,
        MeshExtractor(weights, mesh, ("2048",)),
        reference.pool,
        settings.num_samples,
        settings.batch_size,
        config.seed,
    )
