"""The networks and the sampler."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict

from var_jax.build.sections import call, read_section, tuples
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
_CODEC_KEYS = ("vocab_size", "code_dim", "phi_sharing", "phi_ratio", "normalize_codes", "beta")
_CFG_SCHEDULES = {"linear": guidance.LinearGuidance, "constant": guidance.ConstantGuidance}


def pyramid(config: ConfigDict) -> ScalePyramid:
    """The token pyramid of config.patch_nums."""
    return ScalePyramid.from_patch_nums(tuples(config.patch_nums))


def tokenizer(config: ConfigDict) -> VQVAE:
    """The tokenizer of config.tokenizer; its codec is `.codec`.

    Raises:
      ValueError: the image size is not the stride times the last level.
    """
    values = read_section(config, "tokenizer")
    codec_values = {key: values.pop(key) for key in _CODEC_KEYS if key in values}
    codec = call(ResidualVQ, "tokenizer", codec_values, pyramid=pyramid(config))
    values["dtype"] = _dtype(values.get("dtype", "float32"), "tokenizer")
    module = call(VQVAE, "tokenizer", values, codec=codec, image_channels=config.data.channels)
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
    values = read_section(config, "model")
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
    return call(VAR, "model", values, pyramid=pyramid(config), code_dim=config.tokenizer.code_dim)


def head(config: ConfigDict) -> CategoricalHead:
    """The head of config.model."""
    model = var(config)
    return CategoricalHead(
        vocab_size=config.tokenizer.vocab_size,
        width=model.width,
        label_smoothing=config.model.get("label_smoothing", 0.0),
        dtype=model.dtype,
    )


def sampler(config: ConfigDict) -> Sampler:
    """The settings of config.sampling; a tuple of cfg is one weight a level."""
    values = read_section(config, "sampling")
    cfg, schedule = values.pop("cfg"), values.pop("cfg_schedule", "linear")
    if schedule not in _CFG_SCHEDULES:
        raise ValueError(
            f"config.sampling.cfg_schedule is {schedule!r}; choose one of "
            f"{', '.join(_CFG_SCHEDULES)}, or give cfg one weight a level."
        )
    rule = (
        guidance.PerLevelGuidance(cfg) if isinstance(cfg, tuple) else _CFG_SCHEDULES[schedule](cfg)
    )
    return call(Sampler, "sampling", values, guidance=rule)


def _context(name: str | int) -> Context:
    if name == "block_causal":
        return BlockCausal()
    if isinstance(name, int):
        return RecentLevels(name)
    raise ValueError(
        f"config.model.context is {name!r}; give 'block_causal' or a number of previous levels."
    )


def _dtype(name: str, section: str) -> Any:
    if name not in _DTYPES:
        raise ValueError(f"config.{section}.dtype is {name!r}; choose one of {', '.join(_DTYPES)}.")
    return _DTYPES[name]
