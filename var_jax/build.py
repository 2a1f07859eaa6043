"""From a config to objects. The only module that reads the names of config keys.

A config (ml_collections) has the sections data, tokenizer, tokenizer_train, model, train,
sampling and mesh beside seed, patch_nums and sharding; configs/ has complete examples.
An unknown key or value raises with the section's name.
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath
from ml_collections import ConfigDict

from var_jax import checkpoint, sharding
from var_jax.codecs.residual_vq import ResidualVQ
from var_jax.context import BlockCausal, Context, RecentLevels
from var_jax.convert.lpips import load_lpips
from var_jax.data import pipeline as data_pipeline
from var_jax.data import sources, transforms
from var_jax.heads.categorical import CategoricalHead
from var_jax.objectives.likelihood import Likelihood, progressive_stages
from var_jax.objectives.vqgan import VQGAN
from var_jax.pyramid import ScalePyramid
from var_jax.sampling import guidance
from var_jax.sampling.generate import Sampler
from var_jax.tokenizer.discriminator import PatchDiscriminator
from var_jax.tokenizer.lpips import LPIPS
from var_jax.tokenizer.vqvae import VQVAE
from var_jax.train.loop import TrainSettings
from var_jax.train.optim import OptimizerConfig
from var_jax.transformer.layers import AdaLNInit
from var_jax.transformer.var import VAR

#: Official sizes: depth -> width 64 * depth, heads = depth.
HEAD_DIM = 64

_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def _tuples(value: Any) -> Any:
    """Lists as tuples, all the way down: JSON and ConfigDict have no hashable sequence."""
    if isinstance(value, (list, tuple)):
        return tuple(_tuples(v) for v in value)
    if isinstance(value, Mapping | ConfigDict):
        return {k: _tuples(v) for k, v in value.items()}
    return value


def _section(config: ConfigDict, name: str) -> dict[str, Any]:
    if name not in config:
        raise ValueError(f"The config has no section {name!r}; configs/ has complete examples.")
    return _tuples(config[name])


def _call(function: Any, section: str, values: dict[str, Any], **fixed: Any) -> Any:
    """function(**values, **fixed), naming a key that it does not take."""
    known = set(inspect.signature(function).parameters) - set(fixed)
    for key in values:
        if key not in known:
            raise ValueError(
                f"config.{section} has the unknown key {key!r}; known are "
                f"{', '.join(sorted(known - {'parent', 'name'}))}."
            )
    return function(**values, **fixed)


def _dtype(name: str, section: str) -> Any:
    if name not in _DTYPES:
        raise ValueError(f"config.{section}.dtype is {name!r}; choose one of {', '.join(_DTYPES)}.")
    return _DTYPES[name]


def pyramid(config: ConfigDict) -> ScalePyramid:
    """The token pyramid of config.patch_nums."""
    return ScalePyramid.from_patch_nums(_tuples(config.patch_nums))


_CODEC_KEYS = ("vocab_size", "code_dim", "phi_sharing", "phi_ratio", "normalize_codes", "beta")


def tokenizer(config: ConfigDict) -> VQVAE:
    """The tokenizer of config.tokenizer; its codec is `.codec`.

    Raises:
      ValueError: the image size is not the stride times the last level.
    """
    values = _section(config, "tokenizer")
    codec_values = {key: values.pop(key) for key in _CODEC_KEYS if key in values}
    codec = _call(ResidualVQ, "tokenizer", codec_values, pyramid=pyramid(config))
    values["dtype"] = _dtype(values.get("dtype", "float32"), "tokenizer")
    module = _call(VQVAE, "tokenizer", values, codec=codec, image_channels=config.data.channels)
    size = config.data.image_size
    if module.image_shape[:2] != (size, size):
        raise ValueError(
            f"config.data.image_size is {size}, but the stride {module.stride} times the last "
            f"level {codec.pyramid.grid} is {module.image_shape[:2]}; change patch_nums, "
            "tokenizer.multipliers or image_size."
        )
    return module


def _context(name: str | int) -> Context:
    if name == "block_causal":
        return BlockCausal()
    if isinstance(name, int):
        return RecentLevels(name)
    raise ValueError(
        f"config.model.context is {name!r}; give 'block_causal' or a number of previous levels."
    )


def var(config: ConfigDict) -> VAR:
    """The transformer of config.model; width and num_heads default to the official sizes."""
    values = _section(config, "model")
    values.pop("label_smoothing", None)
    depth = values["depth"]
    values["width"] = values.get("width") or HEAD_DIM * depth
    values["num_heads"] = values.get("num_heads") or max(1, values["width"] // HEAD_DIM)
    values["dtype"] = _dtype(values.get("dtype", "float32"), "model")
    values["context"] = _context(values.get("context", "block_causal"))
    values["adaln_init"] = AdaLNInit(
        values.pop("adaln_init", AdaLNInit.scale_shift),
        values.pop("adaln_gamma_init", AdaLNInit.gamma),
    )
    return _call(VAR, "model", values, pyramid=pyramid(config), code_dim=config.tokenizer.code_dim)


def head(config: ConfigDict) -> CategoricalHead:
    """The head of config.model."""
    model = var(config)
    return CategoricalHead(
        vocab_size=config.tokenizer.vocab_size,
        width=model.width,
        label_smoothing=config.model.get("label_smoothing", 0.0),
        dtype=model.dtype,
    )


_CFG_SCHEDULES = {"linear": guidance.LinearGuidance, "constant": guidance.ConstantGuidance}


def sampler(config: ConfigDict) -> Sampler:
    """The settings of config.sampling; a tuple of cfg is one weight a level."""
    values = _section(config, "sampling")
    cfg, schedule = values.pop("cfg"), values.pop("cfg_schedule", "linear")
    if schedule not in _CFG_SCHEDULES:
        raise ValueError(
            f"config.sampling.cfg_schedule is {schedule!r}; choose one of "
            f"{', '.join(_CFG_SCHEDULES)}, or give cfg one weight a level."
        )
    rule = (
        guidance.PerLevelGuidance(cfg) if isinstance(cfg, tuple) else _CFG_SCHEDULES[schedule](cfg)
    )
    return _call(Sampler, "sampling", values, guidance=rule)


def optimizer_config(
    section: Mapping[str, Any] | ConfigDict, name: str, batch_size: int
) -> OptimizerConfig:
    """Settings of one optimizer; `learning_rate` is for 256 examples, as `tblr` officially."""
    values = _tuples(section)
    values["learning_rate"] = values["learning_rate"] * batch_size / 256
    return _call(OptimizerConfig, name, values)


_RUN_KEYS = frozenset(inspect.signature(TrainSettings).parameters)


def train_settings(config: ConfigDict, section: str) -> TrainSettings:
    """The loop's settings, from config.train or config.tokenizer_train."""
    values = _section(config, section)
    return TrainSettings(**{k: v for k, v in values.items() if k in _RUN_KEYS})


def vqgan(config: ConfigDict) -> tuple[VQGAN, dict[str, Any], dict[str, OptimizerConfig]]:
    """The tokenizer's training from config.tokenizer_train.

    Returns:
      the objective, its frozen parameters, and the optimizer settings of each network.
    """
    values = {k: v for k, v in _section(config, "tokenizer_train").items() if k not in _RUN_KEYS}
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
        discriminator = _call(PatchDiscriminator, "tokenizer_train.discriminator", network)
        optimizers["discriminator"] = optimizer_config(
            optimizer, "tokenizer_train.discriminator_optimizer", batch_size
        )
    perceptual, frozen = None, {}
    vgg, linear = values.pop("lpips_vgg", ""), values.pop("lpips_linear", "")
    if vgg:
        perceptual, frozen = LPIPS(), {"perceptual": load_lpips(vgg, linear or vgg)}
    objective = _call(
        VQGAN,
        "tokenizer_train",
        values,
        tokenizer=tokenizer(config),
        discriminator=discriminator,
        perceptual=perceptual,
    )
    return objective, frozen, optimizers


def make_mesh(config: ConfigDict) -> jax.sharding.Mesh:
    """The mesh of config.mesh over all devices."""
    return _call(sharding.make_mesh, "mesh", _section(config, "mesh"))


def source(config: ConfigDict, split: str) -> sources.Source:
    """The images of config.data."""
    return sources.make_source(config.data.source, split, **_tuples(config.data.options))


def transform(config: ConfigDict, train: bool) -> transforms.ImageTransform:
    """Preprocessing of config.data.transform; crops and augmentation at random to train."""
    values = _tuples(config.data.transform)
    affine = values.pop("affine", None)
    if not train:
        values["flip"] = False
    return _call(
        transforms.ImageTransform,
        "data.transform",
        values,
        size=config.data.image_size,
        channels=config.data.channels,
        random_crop=train,
        affine=transforms.RandomAffine(**affine) if affine and train else None,
    )


def pipeline(
    config: ConfigDict,
    records: sources.Source,
    batch_size: int,
    *,
    train: bool,
    augment: bool | None = None,
    passes: int = 1,
) -> data_pipeline.Pipeline:
    """Batches of images or of cached tokens for this process.

    Args:
      config: reads data and seed.
      records: a source of images, or a token cache.
      batch_size: over all processes.
      train: endless shuffled epochs, or one pass in order.
      augment: random crops and augmentation; by default as `train`.
      passes: see `Pipeline`.
    """
    augment = train if augment is None else augment
    return data_pipeline.Pipeline(
        records,
        transform(config, augment) if records.channels else None,
        batch_size,
        seed=config.seed,
        train=train,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        num_workers=config.data.get("num_workers", 0),
        num_threads=config.data.get("num_threads", 4),
        prefetch=config.data.get("prefetch", 4),
        passes=passes,
    )


@dataclasses.dataclass(frozen=True)
class LoadedTokenizer:
    """A tokenizer from a checkpoint.

    Attributes:
      module: what `params` belongs to.
      params: its parameters, float32; the moving average where the run kept one.
      fingerprint: of params.
      config: of the run that trained it.
    """

    module: VQVAE
    params: Any
    fingerprint: str
    config: ConfigDict


def load_tokenizer(path: epath.PathLike) -> LoadedTokenizer:
    """Reads a tokenizer checkpoint: a run's workdir, or a converted one.

    Raises:
      FileNotFoundError: there is no checkpoint.
      ValueError: it is not a tokenizer, or its parameters are not those it was saved with.
    """
    params, metadata = load_params(path, "tokenizer", "tokenizer")
    fingerprint = checkpoint.fingerprint(params)
    config = ConfigDict(metadata["config"])
    return LoadedTokenizer(tokenizer(config), params, fingerprint, config)


@dataclasses.dataclass(frozen=True)
class LoadedTransformer:
    """A transformer from a checkpoint, with the tokenizer that it speaks to.

    Attributes:
      var, head: modules.
      params: {'transformer': ..., 'head': ...}.
      tokenizer: its tokenizer.
      config: of the run that trained it.
      step: of the checkpoint.
    """

    var: VAR
    head: CategoricalHead
    params: Any
    tokenizer: LoadedTokenizer
    config: ConfigDict
    step: int


def load_transformer(
    path: epath.PathLike, tokenizer_path: epath.PathLike | None = None
) -> LoadedTransformer:
    """Reads a transformer checkpoint and the tokenizer beside it.

    Args:
      path: a run's workdir, or a converted one.
      tokenizer_path: another place of the same tokenizer; by default `path`/tokenizer.

    Raises:
      FileNotFoundError: one of them is missing.
      ValueError: not a transformer, or another tokenizer than the one it was trained with.
    """
    params, metadata = load_params(path, "transformer", None)
    loaded = load_tokenizer(tokenizer_path or epath.Path(path) / "tokenizer")
    expected = metadata["tokenizer_fingerprint"]
    if loaded.fingerprint != expected:
        raise ValueError(
            f"The tokenizer in {tokenizer_path or epath.Path(path) / 'tokenizer'} "
            f"({loaded.fingerprint[:12]}) is not the one that the transformer in {path} was "
            f"trained with ({expected[:12]}); its images would be noise. Give --tokenizer."
        )
    config = ConfigDict(metadata["config"])
    return LoadedTransformer(
        var(config), head(config), params, loaded, config, int(metadata.get("step", 0))
    )


def load_params(path: epath.PathLike, kind: str, part: str | None) -> tuple[Any, dict[str, Any]]:
    """The parameters to evaluate (moving average first) of a checkpoint of the given kind.

    Args:
      path: workdir.
      kind: 'tokenizer' or 'transformer'.
      part: name below the parameters, or None for all of them.

    Returns:
      (tree of float32 arrays on the default device, metadata).
    """
    with checkpoint.Checkpointer(path, read_only=True) as reader:
        metadata = reader.read_metadata()
        if metadata.get("kind") != kind:
            raise ValueError(
                f"{path} holds a {metadata.get('kind', 'checkpoint of unknown kind')}, not a "
                f"{kind}; give the workdir of a {kind}."
            )
        root = "ema" if metadata.get("ema") else "params"
        name = root if part is None else f"{root}/{part}"
        params, metadata, _ = reader.restore_params(name)
    return params, metadata


def use_tokenizer(config: ConfigDict, loaded: LoadedTokenizer) -> None:
    """Makes the config describe the tokenizer that was loaded.

    Raises:
      ValueError: the config asks for other levels or codes than the tokenizer has.
    """
    asked, there = _tuples(config.patch_nums), _tuples(loaded.config.patch_nums)
    if asked != there:
        raise ValueError(
            f"config.patch_nums is {asked}, but the tokenizer was trained with {there}; use the "
            "same levels."
        )
    config.tokenizer = loaded.config.tokenizer
    config.data.image_size = loaded.config.data.image_size
    config.data.channels = loaded.config.data.channels


def training_source(config: ConfigDict, split: str, fingerprint: str) -> sources.Source:
    """The token cache of config.token_cache if there is one, else the images.

    Raises:
      ValueError: the cache was made by another tokenizer than `fingerprint`.
    """
    if config.token_cache:
        return sources.make_source(
            "tokens", split, path=config.token_cache, fingerprint=fingerprint
        )
    return source(config, split)


def set_num_classes(config: ConfigDict, num_classes: int) -> None:
    """Fills in config.model.num_classes = 0 from the data.

    Raises:
      ValueError: the config has fewer classes than the data.
    """
    if not config.model.num_classes:
        config.model.num_classes = num_classes
    if config.model.num_classes < num_classes:
        raise ValueError(
            f"config.model.num_classes is {config.model.num_classes}, but the data has "
            f"{num_classes} classes; set it to {num_classes}, or 0 to take it from the data."
        )


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
    progressive = _tuples(config.train.get("progressive", {}))
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
