"""Configs of converted models: what `build` needs to make their modules again."""

from __future__ import annotations

from typing import Any

from var_jax.codecs.bitwise import Bitwise
from var_jax.codecs.ground_truth_vq import GroundTruthVQ
from var_jax.context import OwnScale
from var_jax.pyramid import PATCH_NUMS
from var_jax.tokenizer.vqvae import VQVAE
from var_jax.transformer.resized_positions import ResizedPositions
from var_jax.transformer.var import VAR

_CODEC = ("vocab_size", "code_dim", "phi_sharing", "phi_ratio", "normalize_codes", "beta")
#: Codecs of other published tokenizers: kind and keys.
_CODECS = {
    GroundTruthVQ: ("ground_truth_vq", ("vocab_size", "code_dim")),
    Bitwise: ("bitwise", ("num_bits",)),
}
_TOKENIZER = (
    "channels",
    "multipliers",
    "num_res_blocks",
    "attention",
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


def transformer_config(tokenizer: VQVAE, transformer: VAR) -> dict[str, Any]:
    """The sections of a config that describe a transformer and its tokenizer.

    Sampling is set as in the official FID evaluations, for HMAR that of its d16.
    """
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
    return {**tokenizer_config(tokenizer), "model": model, "sampling": sampling}
