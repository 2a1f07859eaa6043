"""What training needs beside networks and data: objectives, optimizers, settings, the mesh."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from var_jax import subsets
from var_jax.adapters.base import Adapted
from var_jax.build import registry
from var_jax.build.loading import LoadedTokenizer
from var_jax.build.modules import dtype, network, tokenizer
from var_jax.build.sections import ConfigError, Section, call, read, read_section
from var_jax.convert.lpips import load_lpips
from var_jax.network import Network
from var_jax.objectives.base import NetworkObjective, PartialObjective
from var_jax.objectives.curriculum import Progressive, progressive_stages
from var_jax.objectives.vqgan import VQGAN
from var_jax.parallel import sharding
from var_jax.quantizers.life import CodebookLife
from var_jax.settings import Changeable
from var_jax.tokenizer.discriminator import PatchDiscriminator
from var_jax.tokenizer.lpips import LPIPS
from var_jax.train.experiment import TrainSettings
from var_jax.train.optim import OptimizerConfig


@dataclasses.dataclass(frozen=True)
class LPIPSFiles:
    """What config.tokenizer_train says about the perceptual loss.

    Attributes:
      lpips_vgg: file of torchvision's vgg16; '' is no perceptual loss.
      lpips_linear: file of the linear layers where they are not in the same.
    """

    lpips_vgg: str = ""
    lpips_linear: str = ""


@dataclasses.dataclass(frozen=True)
class StartSettings:
    """What config.train says about where a transformer starts from.

    Attributes:
      initial_checkpoint: workdir of a transformer to fine-tune; '' starts from random parameters.
        A run that goes on has its own.
      trained: patterns of the parameters that train, such as '*/attention/*', see
        `subsets.split`; () is all. The others stay as they are in initial_checkpoint.
      known_classes: how many classes initial_checkpoint has, where the data are of new ones: these
        come after them. 0: the classes of the data are the model's, those that it knows matched by
        name.
    """

    initial_checkpoint: Changeable[str] = ""
    trained: tuple[str, ...] = ()
    known_classes: int = 0


@dataclasses.dataclass(frozen=True)
class ProgressiveSettings:
    """config.train.progressive, see `progressive_stages`; an empty section is off.

    Attributes:
      until: fraction of training after which all levels train.
      first: last level of the first stage.
      ramp_steps: over which the loss of an added level comes in; 0 is at once.
    """

    until: float
    first: int
    ramp_steps: int = 0


OPTIMIZER = Section((OptimizerConfig,))
TRAIN = Section(
    (TrainSettings, StartSettings),
    sections={
        "optimizer": OPTIMIZER,
        "progressive": Section((ProgressiveSettings,)),
        **registry.sections(
            "config.train",
            objective=(
                *("network", "tokenizer", "from_images"),
                *("tokenizer_fingerprint", "known_classes"),
                *("weights", "curriculum", "trained", "seed"),
            ),
            adapter=(),
            weights=(),
            curriculum=("pyramid", "context", "seed"),
        ),
    },
)
TOKENIZER_TRAIN = Section(
    (TrainSettings, LPIPSFiles, VQGAN, CodebookLife),
    given=("tokenizer", "perceptual", "life"),
    sections={
        "optimizer": OPTIMIZER,
        "discriminator": Section((PatchDiscriminator,)),
        "discriminator_optimizer": OPTIMIZER,
    },
)
MESH = Section((sharding.make_mesh,), given=("devices",), changeable=True)

_SECTIONS = {"train": TRAIN, "tokenizer_train": TOKENIZER_TRAIN}


def optimizer_config(
    section: Mapping[str, Any] | ConfigDict, name: str, batch_size: int
) -> OptimizerConfig:
    """Settings of one optimizer; `learning_rate` is for 256 examples, as `tblr` officially."""
    settings = call(OptimizerConfig, f"config.{name}", read(section, f"config.{name}", OPTIMIZER))
    return dataclasses.replace(settings, learning_rate=settings.learning_rate * batch_size / 256)


def train_settings(config: ConfigDict, section: str) -> TrainSettings:
    """The loop's settings, from config.train or config.tokenizer_train."""
    values = read_section(config, section, _SECTIONS[section])
    return call(TrainSettings, f"config.{section}", values)


def check_tools(config: ConfigDict, section: str) -> None:
    """Raises ConfigError if a training's section asks for a package that is not installed."""
    project = train_settings(config, section).wandb_project
    if project and importlib.util.find_spec("wandb") is None:
        raise ConfigError(
            f"config.{section}.wandb_project is {project!r}, but the package wandb is not "
            "installed; pip install 'var_jax[wandb]', or leave it ''."
        )


def vqgan(config: ConfigDict) -> tuple[VQGAN, dict[str, Any], dict[str, OptimizerConfig]]:
    """The tokenizer's training from config.tokenizer_train.

    Returns:
      the objective, its frozen parameters, and the optimizer settings of each network.
    """
    path = "config.tokenizer_train"
    values = read_section(config, "tokenizer_train", TOKENIZER_TRAIN)
    batch_size = train_settings(config, "tokenizer_train").batch_size
    optimizers = {
        "tokenizer": optimizer_config(
            values.get("optimizer", {}), "tokenizer_train.optimizer", batch_size
        )
    }
    discriminator = None
    network, optimizer = values.get("discriminator"), values.get("discriminator_optimizer")
    if values.get("adversarial_weight", 0):
        if network is None or optimizer is None:
            raise ValueError(
                "config.tokenizer_train has an adversarial_weight; give it the sections "
                "discriminator and discriminator_optimizer, or set the weight to 0."
            )
        where = f"{path}.discriminator"
        network["dtype"] = dtype(network.get("dtype", "float32"), where)
        discriminator = call(PatchDiscriminator, where, network)
        optimizers["discriminator"] = optimizer_config(
            optimizer, "tokenizer_train.discriminator_optimizer", batch_size
        )
    perceptual, frozen = None, {}
    files = call(LPIPSFiles, path, values)
    if files.lpips_vgg:
        params = load_lpips(files.lpips_vgg, files.lpips_linear or files.lpips_vgg)
        # A score is exact; a loss need not be, and VGG would take six passes on a TPU.
        perceptual = LPIPS(precision=jax.lax.Precision.DEFAULT)
        frozen = {"perceptual": params}
    training = call(
        VQGAN,
        path,
        values,
        tokenizer=tokenizer(config),
        discriminator=discriminator,
        perceptual=perceptual,
        life=call(CodebookLife, path, values),
    )
    return training, frozen, optimizers


def objective(config: ConfigDict, loaded: LoadedTokenizer, from_images: bool) -> NetworkObjective:
    """The transformer's objective.

    Args:
      config: reads model and train.
      loaded: the tokenizer.
      from_images: batches hold images, not what the codec makes of them.
    """
    path = "config.train"
    values = read(config.get("train", {}), path, TRAIN)
    made = network(config)
    curriculum = _progressive(config, values, made)
    if values.get("curriculum"):
        if curriculum is not None:
            raise ConfigError(f"{path} has progressive and curriculum; give one of them.")
        curriculum = registry.make(
            "curriculum",
            values["curriculum"],
            f"{path}.curriculum",
            pyramid=made.transformer.pyramid,
            context=made.transformer.sees(),
            seed=config.get("seed", 0),
        )
    weights = registry.make("weights", values.get("weights") or "uniform", f"{path}.weights")
    stages = "progressive" if values.get("progressive") else "curriculum"
    set_here = {"weights": "weights", "curriculum": stages}
    training = registry.make(
        "objective",
        values.get("objective") or "likelihood",
        f"{path}.objective",
        {name: f"{path}.{key}" for name, key in set_here.items() if values.get(key)},
        network=made,
        tokenizer=loaded.module,
        tokenizer_fingerprint=loaded.fingerprint,
        known_classes=values.get("known_classes", 0),
        from_images=from_images,
        weights=weights,
        curriculum=curriculum,
        trained=None,
        seed=config.get("seed", 0),
    )
    if not values.get("adapter"):
        return training
    if isinstance(training, PartialObjective):
        raise ConfigError(
            f"{path}.adapter changes a network, but {path}.objective trains "
            f"{', '.join(training.trains)} alone; leave one of them out."
        )
    return Adapted(training, registry.make("adapter", values["adapter"], f"{path}.adapter"))


def trained_patterns(config: ConfigDict, objective: NetworkObjective) -> tuple[str, ...]:
    """Patterns of what trains, the objective's or those of config.train.trained; () is all.

    Raises:
      ConfigError: both name some.
      ValueError: a pattern matches no parameter.
    """
    values = read(config.get("train", {}), "config.train", TRAIN)
    patterns = call(StartSettings, "config.train", values).trained
    if not isinstance(objective, PartialObjective):
        boxed = jax.eval_shape(objective.init_params, jax.random.key(0))
        subsets.check_patterns(boxed, patterns, "config.train.trained")
        return patterns
    if patterns:
        raise ConfigError(
            f"config.train.trained is {list(patterns)}, but config.train.objective trains "
            f"{', '.join(objective.trains)} and nothing else; leave one of them out."
        )
    return objective.trains


def _progressive(
    config: ConfigDict, values: Mapping[str, Any], made: Network
) -> Progressive | None:
    if not values.get("progressive"):
        return None
    settings = call(ProgressiveSettings, "config.train.progressive", values["progressive"])
    pyramid = made.transformer.pyramid
    stages = progressive_stages(
        pyramid.num_levels,
        train_settings(config, "train").num_steps,
        values.get("optimizer", {}).get("warmup_steps", 0),
        settings.until,
        settings.first,
    )
    return Progressive(pyramid, stages, settings.ramp_steps)


def make_mesh(config: ConfigDict, devices: Sequence[Any] | None = None) -> jax.sharding.Mesh:
    """The mesh of config.mesh, over all devices by default."""
    values = read_section(config, "mesh", MESH)
    return call(sharding.make_mesh, "config.mesh", values, devices=devices)
