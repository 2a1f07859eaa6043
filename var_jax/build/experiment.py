"""A whole training from a config: the one object that the loop takes."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import jax
from absl import logging
from etils import epath
from ml_collections import ConfigDict

from var_jax.adapters.base import Adapted
from var_jax.build.adapters import REFERENCE, described
from var_jax.build.data import data_facts, pipeline, set_num_classes, source, training_source
from var_jax.build.evaluation import evaluation_settings
from var_jax.build.evaluators import tokenizer_evaluators, transformer_evaluators
from var_jax.build.frozen import Reference, place, saved_reference
from var_jax.build.initial import start_from
from var_jax.build.loading import load_params, load_tokenizer, use_tokenizer
from var_jax.build.resuming import saved_metadata
from var_jax.build.sample_caching import with_samples
from var_jax.build.sections import ConfigError
from var_jax.build.training import (
    make_mesh,
    objective,
    optimizer_config,
    train_settings,
    trained_patterns,
    vqgan,
)
from var_jax.checkpoint import fingerprint
from var_jax.plan import accelerators, flops
from var_jax.train import optim
from var_jax.train.experiment import Experiment, SavedBeside


def tokenizer_experiment(config: ConfigDict) -> Experiment:
    """The training of the tokenizer that a config describes."""
    evaluation = evaluation_settings(config, "tokenizer_train")
    training, frozen, optimizers = vqgan(config)
    settings = train_settings(config, "tokenizer_train")
    settings = dataclasses.replace(settings, evaluate_every=evaluation.every)
    mesh = make_mesh(config)
    sources = {split: source(config, split) for split in ("train", "val")}
    images, held_out = (
        pipeline(
            config, sources[split], settings.batch_size, train=train, mesh=mesh, caption="none"
        )
        for split, train in (("train", True), ("val", False))
    )
    return Experiment(
        name="tokenizer",
        objective_at=lambda step: training,
        optimizer=optim.make_group_optimizer(optimizers, settings.num_steps),
        batches=images.batches,
        settings=settings,
        mesh=mesh,
        preset=config.sharding,
        metadata=metadata(
            config, "tokenizer", ema=settings.ema_decay > 0, data=data_facts(sources["train"])
        ),
        seed=config.seed,
        frozen=frozen,
        learning_rate=optim.learning_rate_schedule(optimizers["tokenizer"], settings.num_steps),
        evaluators=tokenizer_evaluators(config, evaluation, training.tokenizer, held_out, mesh),
    )


def transformer_experiment(config: ConfigDict, workdir: epath.PathLike | None = None) -> Experiment:
    """The training of the transformer that a config describes.

    Args:
      config: complete; what the tokenizer and the data say is filled in.
      workdir: of the run; one that goes on there takes the model that it started from from there,
        not from config.train.initial_checkpoint, which may be gone.

    Raises:
      ValueError: no tokenizer is named, or it does not fit.
    """
    if not config.tokenizer_checkpoint:
        raise ValueError(
            "The transformer needs a tokenizer; give --config.tokenizer_checkpoint=<its workdir>."
        )
    evaluation = evaluation_settings(config, "train")
    tokenizer = load_tokenizer(config.tokenizer_checkpoint)
    use_tokenizer(config, tokenizer)
    settings = train_settings(config, "train")
    settings = dataclasses.replace(settings, evaluate_every=evaluation.every)
    sources = {
        split: training_source(config, split, tokenizer.fingerprint, tokenizer.module.codec.source)
        for split in ("train", "val")
    }
    set_num_classes(config, sources["train"].num_classes)
    goes_on = workdir is not None and saved_metadata(workdir) is not None
    initial = config.train.get("initial_checkpoint", "")
    known = config.train.get("known_classes", 0)
    if known and not (goes_on or initial):
        raise ConfigError(
            f"config.train.known_classes is {known}, but the run starts from nothing; give "
            "--config.train.initial_checkpoint=<workdir of a transformer>, or leave it out."
        )
    reference, started = None, None
    if initial and not goes_on:
        start = start_from(initial, config, tokenizer, sources["train"].class_names)
        logging.info("%s", start.summary)
        started = start.fit(load_params(initial, "transformer", None)[0])
    mesh = make_mesh(config)
    # Placed once, for the step and all evaluators.
    tokenizer = tokenizer.on(mesh, config.get("frozen_sharding", "replicated"))
    cached = bool(config.token_cache)
    training = objective(config, tokenizer, from_images=not cached)
    trained = trained_patterns(config, training)
    if trained and not (goes_on or initial):
        raise ConfigError(
            f"The run trains a part ({', '.join(trained)}) of a network that is there; give "
            "--config.train.initial_checkpoint=<workdir of a transformer>."
        )
    beside = {
        "tokenizer": SavedBeside(
            {"tokenizer": tokenizer.params},
            metadata(tokenizer.config, "tokenizer", ema=False),
        )
    }
    about = {"tokenizer_fingerprint": tokenizer.fingerprint}
    if REFERENCE in training.frozen_parts():
        if goes_on:
            reference = saved_reference(workdir, training, config, mesh)
        elif started is not None:
            reference = Reference(started, fingerprint(started))
    frozen = place(training, config, mesh, tokenizer, reference)
    records, of_samples = with_samples(
        config,
        sources["train"],
        training,
        tokenizer.module.codec.source,
        reference.fingerprint if reference else "",
    )
    batches, held_out = (
        pipeline(config, found, settings.batch_size, train=train, mesh=mesh)
        for found, train in ((records, True), (sources["val"], False))
    )
    if reference is not None:
        kept = metadata(
            config, "transformer", ema=False, fingerprint=reference.fingerprint, **about
        )
        beside[REFERENCE] = SavedBeside(frozen[REFERENCE], kept)
        about["reference_fingerprint"] = reference.fingerprint
    optimizer = optimizer_config(config.train.optimizer, "train.optimizer", settings.batch_size)
    chip = accelerators.of_kind(jax.devices()[0].device_kind)
    # What stands still has no gradient, which saves up to a third that the count knows nothing of.
    counted = not trained and not isinstance(training, Adapted)
    return Experiment(
        name="transformer",
        objective_at=training.at,
        optimizer=optim.make_optimizer(optimizer, settings.num_steps),
        batches=batches.batches,
        settings=settings,
        mesh=mesh,
        preset=config.sharding,
        metadata=metadata(
            config,
            "transformer",
            ema=settings.ema_decay > 0,
            **about,
            **described(config),
            data={**data_facts(sources["train"]), **of_samples},
        ),
        seed=config.seed,
        frozen=frozen,
        learning_rate=optim.learning_rate_schedule(optimizer, settings.num_steps),
        flops_per_image=(lambda step: flops.training_flops(training.at(step))) if counted else None,
        peak_flops=chip.flops if chip else 0.0,
        evaluators=transformer_evaluators(
            config, evaluation, tokenizer, training, frozen, held_out, mesh
        ),
        trained=trained,
        initial_params=None if isinstance(training, Adapted) else started,
        beside=beside,
    )


def metadata(config: ConfigDict, kind: str, **values: Any) -> dict[str, Any]:
    """What a checkpoint says about itself beside its state; `load_params` reads it.

    Args:
      config: of the run.
      kind: 'tokenizer' or 'transformer'.
      values: what else, such as whether the state has a moving average (ema).
    """
    return {"kind": kind, "config": json.loads(json.dumps(config.to_dict())), **values}
