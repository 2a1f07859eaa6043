"""What a training evaluates, from config.evaluation."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from var_jax import build
from var_jax.data.pipeline import Pipeline
from var_jax.evaluation.adm import read_reference
from var_jax.evaluation.during_training import (
    Every,
    Reconstruction,
    SampleGrid,
    SmallFID,
    ValidationLoss,
)
from var_jax.evaluation.features import FeatureExtractor
from var_jax.evaluation.inception_weights import load_inception
from var_jax.objectives.likelihood import Likelihood
from var_jax.sampling.images import ImageSampler
from var_jax.tokenizer.vqvae import VQVAE
from var_jax.train.loop import Evaluator


@dataclasses.dataclass(frozen=True)
class FIDSettings:
    """config.evaluation.fid.

    Attributes:
      inception: file of the Inception weights.
      reference: npz of real images, or an ADM reference with their statistics.
      num_samples: images of each evaluation.
      batch_size: images at once, over all devices.
      every: in steps, a multiple of config.evaluation.every; 0 is only at the end.
    """

    inception: str
    reference: str
    num_samples: int = 1000
    batch_size: int = 64
    every: int = 0


@dataclasses.dataclass(frozen=True)
class EvaluationSettings:
    """config.evaluation; all of it uses the parameters' moving average where there is one.

    A tokenizer's training reads every, reconstructions and rfid only, a transformer's not rfid.

    Attributes:
      every: in steps; 0 is only at the end, None takes evaluate_every of the training's section.
      likelihood: held-out negative log likelihood and accuracy.
      samples_per_class: rows of the picture of samples; 0 is none.
      max_classes: columns of it.
      reconstructions: held-out images that the tokenizer shows beside the originals, with the
        PSNR of the whole split; None is 16 where it trains, and none where it is frozen.
      fid: None is none; so is a section whose inception and reference are both '', which a
        command line may fill in.
      rfid: file of the Inception weights, for the Frechet distance of all held-out images to
        their reconstructions; '' is none.
    """

    every: int | None = None
    likelihood: bool = True
    samples_per_class: int = 4
    max_classes: int = 10
    reconstructions: int | None = None
    fid: FIDSettings | None = None
    rfid: str = ""


def read_settings(config: ConfigDict, section: str = "train") -> EvaluationSettings:
    """Reads config.evaluation, which a config may leave out.

    Args:
      config: of the training.
      section: 'train' or 'tokenizer_train'.

    Raises:
      ValueError: an unknown or missing key, or steps that do not fit each other.
    """
    values = dict(config.get("evaluation", {}))
    fid = values.pop("fid", None)
    # A tokenizer draws no samples.
    off = section != "train" or not fid or not (fid.get("inception") or fid.get("reference"))
    fid = None if off else _fill(FIDSettings, "evaluation.fid", fid)
    settings = _fill(EvaluationSettings, "evaluation", values, fid=fid)
    if settings.every is None:
        every = config[section].get("evaluate_every", 0)
        settings = dataclasses.replace(settings, every=every)
    if fid is not None and fid.every and (not settings.every or fid.every % settings.every):
        raise ValueError(
            f"config.evaluation.fid.every is {fid.every}, which is no multiple of the "
            f"{settings.every} steps between evaluations (config.evaluation.every); make it one."
        )
    return settings


def make(
    config: ConfigDict,
    settings: EvaluationSettings,
    tokenizer: build.LoadedTokenizer,
    objective: Likelihood,
    frozen: Any,
    held_out: Pipeline,
    mesh: jax.sharding.Mesh,
) -> list[Evaluator]:
    """The evaluators of a transformer's training, in the order in which they run.

    Args:
      config: of the training.
      settings: see `read_settings`.
      tokenizer: of the tokens.
      objective, frozen: the plain likelihood and its frozen parameters.
      held_out: what the objective reads, one pass in order.
      mesh: of the training.

    Raises:
      FileNotFoundError, ValueError: files of the FID are missing or not what they should be.
    """
    found: list[Evaluator] = []
    if settings.likelihood:
        found.append(ValidationLoss(objective, frozen, held_out, mesh))
    if settings.samples_per_class or settings.fid is not None:
        sampler = ImageSampler(
            objective.var,
            objective.head,
            tokenizer.module,
            tokenizer.params,
            build.sampler(config),
            mesh,
        )
    if settings.samples_per_class:
        classes = min(objective.var.num_classes, settings.max_classes)
        labels = np.tile(np.arange(classes), settings.samples_per_class)
        found.append(SampleGrid(sampler, labels, config.seed, columns=classes))
    if settings.reconstructions:
        images = build.pipeline(
            config, build.source(config, "val"), config.train.batch_size, train=False
        )
        found.append(
            Reconstruction(
                tokenizer.module, images, mesh, settings.reconstructions, tokenizer.params
            )
        )
    if settings.fid is not None:
        fid = _small_fid(config, settings.fid, sampler, mesh)
        found.append(Every(fid, settings.fid.every, config.train.num_steps))
    return found


def make_for_tokenizer(
    settings: EvaluationSettings, tokenizer: VQVAE, held_out: Pipeline, mesh: jax.sharding.Mesh
) -> list[Evaluator]:
    """The evaluators of a tokenizer's training.

    Args:
      settings: see `read_settings`.
      tokenizer: module.
      held_out: images, one pass in order.
      mesh: of the training.

    Raises:
      FileNotFoundError, ValueError: the Inception weights are missing or not what they should be.
    """
    shown = 16 if settings.reconstructions is None else settings.reconstructions
    extractor = _extractor(settings.rfid, mesh) if settings.rfid else None
    return [Reconstruction(tokenizer, held_out, mesh, shown, extractor=extractor)]


def _extractor(inception: str, mesh: jax.sharding.Mesh) -> FeatureExtractor:
    mine = [d for d in mesh.devices.flat if d.process_index == jax.process_index()]
    return FeatureExtractor(load_inception(inception), ("2048",), devices=mine)


def _small_fid(
    config: ConfigDict, settings: FIDSettings, sampler: ImageSampler, mesh: jax.sharding.Mesh
) -> SmallFID:
    extractor = _extractor(settings.inception, mesh)
    logging.info("Reading the reference %s.", settings.reference)
    reference = read_reference(settings.reference, extractor, keep_features=False)
    return SmallFID(
        sampler,
        extractor,
        reference.pool,
        settings.num_samples,
        settings.batch_size,
        config.seed,
    )


def _fill(kind: type, section: str, values: Mapping[str, Any], **fixed: Any) -> Any:
    """kind(**values, **fixed), naming a key that is unknown or missing."""
    known = {k: v for k, v in inspect.signature(kind).parameters.items() if k not in fixed}
    for key in values:
        if key not in known:
            raise ValueError(
                f"config.{section} has the unknown key {key!r}; known are {', '.join(known)}."
            )
    for key, parameter in known.items():
        if parameter.default is parameter.empty and not values.get(key):
            raise ValueError(f"config.{section} needs a value for {key!r}.")
    return kind(**dict(values), **fixed)
