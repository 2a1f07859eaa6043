"""Configs of converted models: what `build` needs to make their modules again."""

from __future__ import annotations

from typing import Any

from var_jax.codecs.bitwise import Bitwise
from var_jax.codecs.ground_truth_vq import GroundTruthVQ
from var_jax.codecs.kl_latent import KLLatent
from var_jax.context import OwnScale
from var_jax.convert import infinity_text
from var_jax.network import Network
from var_jax.pyramid import PATCH_NUMS
from var_jax.tokenizer.vqvae import VQVAE
from var_jax.transformer.mar import MAR
from var_jax.transformer.resized_positions import ResizedPositions
from var_jax.transformer.text_features import TextFeatures
from var_jax.transformer.xar import XAR

_CODEC = ("vocab_size", "code_dim", "phi_sharing", "phi_ratio", "normalize_codes", "beta")
#: Codecs of other published tokenizers: kind and keys.
_CODECS = {
    GroundTruthVQ: ("ground_truth_vq", ("vocab_size", "code_dim")),
    Bitwise: ("bitwise", ("num_bits",)),
    KLLatent: ("kl_latent", ("code_dim",)),
}
_TOKENIZER = (
    "channels",
    "multipliers",
    "num_res_blocks",
    "attention",
    "decoder_attention",
    "norm_groups",
    "latent_channels",
    "latent_kernel",
)
_TRANSFORMER = (
    "num_classes",
    "depth",
    "width",
    "num_heads",
    "mlp_ratio",
    "qk_norm",
    "shared_adaln",
)
_MAR = (
    *("num_classes", "depth", "decoder_depth", "width", "num_heads", "mlp_ratio"),
    "num_buffer",
)
_XAR = ("num_classes", "depth", "decoder_depth", "width", "num_heads", "cells")
#: Of the published models by width: guidance of MAR and of xAR, that of their FID evaluations less
#: 1, see `LinearGuidance`; steps of xAR for each cell.
_MAR_CFG = {768: 1.9, 1024: 2.0, 1280: 2.2}
_XAR_CFG = {768: 1.7, 1024: 1.3, 1280: 1.2}
_XAR_STEPS = {768: 40}


def _fields(module: Any, names: tuple[str, ...]) -> dict[str, Any]:
    values = {name: getattr(module, name) for name in names}
    return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}


def tokenizer_config(tokenizer: VQVAE) -> dict[str, Any]:
    """The sections of a config that describe a tokenizer, as JSON can hold them."""
    return {
        "patch_nums": list(tokenizer.codec.pyramid.patch_nums),
        "data": {
            "image_size": tokenizer.image_shape[0],
            "channels": tokenizer.image_channels,
        },
        "tokenizer": {**_codec(tokenizer.codec), **_fields(tokenizer, _TOKENIZER)},
    }


def _codec(codec: Any) -> dict[str, Any]:
    if type(codec) in _CODECS:
        kind, keys = _CODECS[type(codec)]
        return {"codec": {"kind": kind, **_fields(codec, keys)}}
    return _fields(codec, _CODEC)


def transformer_config(tokenizer: VQVAE, network: Network) -> dict[str, Any]:
    """The sections of a config that describe a transformer and its tokenizer.

    Sampling is set as in the official FID evaluations, for HMAR that of its d16.
    """
    others = {MAR: _mar, XAR: _xar}
    model, sampling = others.get(type(network.transformer), _var)(network)
    return {**tokenizer_config(tokenizer), "model": model, "sampling": sampling}


def _var(network: Network) -> tuple[dict[str, Any], dict[str, Any]]:
    transformer = network.transformer
    if isinstance(transformer.conditioner, TextFeatures):  # Infinity
        return infinity_text.model_config(network)
    model = _fields(transformer, _TRANSFORMER)
    sampling: dict[str, Any] = {"cfg": 1.5, "top_k": 900, "top_p": 0.96}
    if transformer.context == OwnScale():  # HMAR
        model["context"] = {"kind": "own_scale"}
        sampling = {"cfg": 1.7, "top_k": 1000, "top_p": 0.99}
    if isinstance(transformer.positions, ResizedPositions):  # FlexVAR
        model["positions"] = {"kind": "resized_map", "side": transformer.positions.side}
        sampling = {
            "cfg": 2.5,
            "cfg_schedule": "ten_steps",
            "top_k": 900,
            "top_p": 0.95,
            "processors": [{"kind": "greedy_at_unknown_sizes", "sides": list(PATCH_NUMS[256])}],
        }
    return model, sampling


def _mar(network: Network) -> tuple[dict[str, Any], dict[str, Any]]:
    transformer = network.transformer
    model = {
        "transformer": "mar",
        **_fields(transformer, _MAR),
        "head": {"kind": "diffusion", **_fields(network.head, ("net_width", "net_depth"))},
    }
    sampling = {
        "cfg": _MAR_CFG.get(transformer.width, 2.0),
        "num_steps": 100,
        "decoder": {
            "kind": "random_order",
            "num_iterations": min(256, transformer.pyramid.length),
        },
    }
    return model, sampling


def _xar(network: Network) -> tuple[dict[str, Any], dict[str, Any]]:
    transformer = network.transformer
    model = {"transformer": "xar", **_fields(transformer, _XAR), "head": {"kind": "velocity"}}
    sampling = {
        "cfg": _XAR_CFG.get(transformer.width, 1.2),
        "num_steps": _XAR_STEPS.get(transformer.width, 50),
        "solver": "euler_maruyama",
        "guidance_interval": 1.0,
        "decoder": {"kind": "next_entity"},
    }
    return model, sampling
