"""The networks and the sampler."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict

from var_jax.build.sections import Section, call, read_section, tuples
from var_jax.codecs.residual_vq import ResidualVQ
from var_jax.context import BlockCausal, Context, RecentLevels
from var_jax.decoding import guidance
from var_jax.decoding.generate import Sampler
from var_jax.heads.categorical import CategoricalHead
from var_jax.pyramid import ScalePyramid
from var_jax.tokenizer.vqvae import VQVAE
from var_jax.transformer.layers import AdaLNInit
from var_jax.transformer.var import VAR

#: Official sizes: depth -> width 64 * depth, heads = depth.
HEAD_DIM = 64

_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
_CFG_SCHEDULES = {"linear": guidance.LinearGuidance, "constant": guidance.ConstantGuidance}


@dataclasses.dataclass(frozen=True)
class ModelSettings:
    """What config.model says in other words than `VAR` takes, or says of the head.

    Attributes:
      width: None is the official 64 * depth.
      num_heads: None is one for each 64 of the width.
      context: 'block_causal', or how many levels before its own a level sees.
      adaln_init, adaln_gamma_init: see `AdaLNInit`.
      label_smoothing: see `CategoricalHead`.
    """

    width: int | None = None
    num_heads: int | None = None
    context: str | int = "block_causal"
    adaln_init: float = AdaLNInit.scale_shift
    adaln_gamma_init: float = AdaLNInit.gamma
    label_smoothing: float = 0.0


@dataclasses.dataclass(frozen=True)
class GuidanceSettings:
    """What config.sampling says about guidance.

    Attributes:
      cfg: its strength; a tuple is one weight a level.
      cfg_schedule: 'linear' or 'constant', how one strength becomes weights.
    """

    cfg: float | tuple[float, ...] = 1.5
    cfg_schedule: str = "linear"


TOKENIZER = Section((ResidualVQ, VQVAE), given=("pyramid", "codec", "image_channels"))
MODEL = Section((ModelSettings, VAR), given=("pyramid", "code_dim"))
SAMPLING = Section((GuidanceSettings, Sampler), given=("guidance",), changeable=True)


def pyramid(config: ConfigDict) -> ScalePyramid:
    """The token pyramid of config.patch_nums."""
    return ScalePyramid.from_patch_nums(tuples(config.patch_nums))


def tokenizer(config: ConfigDict) -> VQVAE:
    """The tokenizer of config.tokenizer; its codec is `.codec`.

    Raises:
      ValueError: the image size is not the stride times the last level.
    """
    values = read_section(config, "tokenizer", TOKENIZER)
    codec = call(ResidualVQ, "config.tokenizer", values, pyramid=pyramid(config))
    values["dtype"] = dtype(values.get("dtype", "float32"), "config.tokenizer")
    module = call(
        VQVAE, "config.tokenizer", values, codec=codec, image_channels=config.data.channels
    )
    size = config.data.image_size
    if module.image_shape[:2] != (size, size):
        raise ValueError(
            f"config.data.image_size is {size}, but the stride {module.stride} times the last "
            f"level {codec.pyramid.grid} is {module.image_shape[:2]}; change patch_nums, "
            "tokenizer.multipliers or image_size."
        )
    return module


def var(config: ConfigDict) -> VAR:
    """The transformer of config.model; width and num_heads default to the official sizes."""
    values = read_section(config, "model", MODEL)
    settings = call(ModelSettings, "config.model", values)
    width = settings.width or HEAD_DIM * values.get("depth", 0)
    return call(
        VAR,
        "config.model",
        values,
        pyramid=pyramid(config),
        code_dim=config.tokenizer.code_dim,
        width=width,
        num_heads=settings.num_heads or max(1, width // HEAD_DIM),
        context=_context(settings.context),
        adaln_init=AdaLNInit(settings.adaln_init, settings.adaln_gamma_init),
        dtype=dtype(values.get("dtype", "float32"), "config.model"),
    )


def head(config: ConfigDict) -> CategoricalHead:
    """The head of config.model."""
    model = var(config)
    return CategoricalHead(
        vocab_size=config.tokenizer.vocab_size,
        width=model.width,
        label_smoothing=call(
            ModelSettings, "config.model", read_section(config, "model", MODEL)
        ).label_smoothing,
        dtype=model.dtype,
    )


def sampler(config: ConfigDict) -> Sampler:
    """The settings of config.sampling; a tuple of cfg is one weight a level."""
    values = read_section(config, "sampling", SAMPLING)
    settings = call(GuidanceSettings, "config.sampling", values)
    cfg, schedule = settings.cfg, settings.cfg_schedule
    if schedule not in _CFG_SCHEDULES:
        raise ValueError(
            f"config.sampling.cfg_schedule is {schedule!r}; choose one of "
            f"{', '.join(_CFG_SCHEDULES)}, or give cfg one weight a level."
        )
    rule = (
        guidance.PerLevelGuidance(cfg) if isinstance(cfg, tuple) else _CFG_SCHEDULES[schedule](cfg)
    )
    return call(Sampler, "config.sampling", values, guidance=rule)


def _context(name: str | int) -> Context:
    if name == "block_causal":
        return BlockCausal()
    if isinstance(name, int):
        return RecentLevels(name)
    raise ValueError(
        f"config.model.context is {name!r}; give 'block_causal' or a number of previous levels."
    )


def dtype(name: str, path: str) -> Any:
    """A computing type by name; `path` is of the section that names it."""
    if name not in _DTYPES:
        raise ValueError(f"{path}.dtype is {name!r}; choose one of {', '.join(_DTYPES)}.")
    return _DTYPES[name]
