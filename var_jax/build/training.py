"""What training needs beside networks and data: objectives, optimizers, settings, the mesh."""

from __future__ import annotations

import bisect
import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
from ml_collections import ConfigDict

from var_jax.build.loading import LoadedTokenizer
from var_jax.build.modules import head, tokenizer, var
from var_jax.build.sections import call, read_section, tuples
from var_jax.convert.lpips import load_lpips
from var_jax.objectives.likelihood import Likelihood, progressive_stages
from var_jax.objectives.vqgan import VQGAN
from var_jax.parallel import sharding
from var_jax.tokenizer.discriminator import PatchDiscriminator
from var_jax.tokenizer.lpips import LPIPS
from var_jax.train.experiment import TrainSettings
from var_jax.train.optim import OptimizerConfig

_RUN_KEYS = frozenset(inspect.signature(TrainSettings).parameters)


def optimizer_config(
    section: Mapping[str, Any] | ConfigDict, name: str, batch_size: int
) -> OptimizerConfig:
    """Settings of one optimizer; `learning_rate` is for 256 examples, as `tblr` officially."""
    values = tuples(section)
    values["learning_rate"] = values["learning_rate"] * batch_size / 256
    return call(OptimizerConfig, name, values)


def train_settings(config: ConfigDict, section: str) -> TrainSettings:
    """The loop's settings, from config.train or config.tokenizer_train."""
    values = read_section(config, section)
    return TrainSettings(**{k: v for k, v in values.items() if k in _RUN_KEYS})


def vqgan(config: ConfigDict) -> tuple[VQGAN, dict[str, Any], dict[str, OptimizerConfig]]:
    """The tokenizer's training from config.tokenizer_train.

    Returns:
      the objective, its frozen parameters, and the optimizer settings of each network.
    """
    values = read_section(config, "tokenizer_train")
    values = {k: v for k, v in values.items() if k not in _RUN_KEYS}
    batch_size = config.tokenizer_train.batch_size
    optimizers = {
        "tokenizer": optimizer_config(
            values.pop("optimizer"), "tokenizer_train.optimizer", batch_size
        )
    }
    discriminator = None
    network, optimizer = (
        values.pop("discriminator", None),
        values.pop("discriminator_optimizer", None),
    )
    if values.get("adversarial_weight", 0):
        if network is None or optimizer is None:
            raise ValueError(
                "config.tokenizer_train has an adversarial_weight; give it the sections "
                "discriminator and discriminator_optimizer, or set the weight to 0."
            )
        discriminator = call(PatchDiscriminator, "tokenizer_train.discriminator", network)
        optimizers["discriminator"] = optimizer_config(
            optimizer, "tokenizer_train.discriminator_optimizer", batch_size
        )
    perceptual, frozen = None, {}
    vgg, linear = values.pop("lpips_vgg", ""), values.pop("lpips_linear", "")
    if vgg:
        perceptual, frozen = LPIPS(), {"perceptual": load_lpips(vgg, linear or vgg)}
    objective = call(
        VQGAN,
        "tokenizer_train",
        values,
        tokenizer=tokenizer(config),
        discriminator=discriminator,
        perceptual=perceptual,
    )
    return objective, frozen, optimizers


def likelihood(
    config: ConfigDict, loaded: LoadedTokenizer, cached: bool
) -> tuple[Callable[[int], Likelihood], Likelihood]:
    """The transformer's objective.

    Args:
      config: reads model and train.
      loaded: the tokenizer.
      cached: batches hold tokens, not images.

    Returns:
      step -> objective (they differ in progressive training only), and the one to evaluate
      with: all levels, the plain likelihood.
    """
    model_head = head(config)
    base = Likelihood(
        var(config),
        dataclasses.replace(model_head, label_smoothing=0.0),
        loaded.module.codec,
        None if cached else loaded.module,
    )
    training = dataclasses.replace(base, head=model_head)
    progressive = tuples(config.train.get("progressive", {}))
    if not progressive:
        return lambda step: training, base
    num_steps = config.train.num_steps
    stages = progressive_stages(
        base.var.pyramid.num_levels,
        num_steps,
        config.train.optimizer.get("warmup_steps", 0),
        progressive["until"],
        progressive["first"],
    )
    starts = [stage.start for stage in stages]

    @functools.cache
    def objective(index: int) -> Likelihood:
        stage = stages[index]
        if stage.num_levels == base.var.pyramid.num_levels:
            return training
        # The first stage needs no ramp: the learning rate warms up there.
        return dataclasses.replace(
            training,
            num_levels=stage.num_levels,
            ramp_start=stage.start,
            ramp_steps=progressive.get("ramp_steps", 0) if index else 0,
        )

    return lambda step: objective(bisect.bisect_right(starts, step) - 1), base


def make_mesh(config: ConfigDict) -> jax.sharding.Mesh:
    """The mesh of config.mesh over all devices."""
    return call(sharding.make_mesh, "mesh", read_section(config, "mesh"))
