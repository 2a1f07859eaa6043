"""Configs of converted models: what `build` needs to make their modules again."""

from __future__ import annotations

from typing import Any

from var_jax.tokenizer.vqvae import VQVAE
from var_jax.transformer.var import VAR

_CODEC = ("vocab_size", "code_dim", "phi_sharing", "phi_ratio", "normalize_codes", "beta")
_TOKENIZER = ("channels", "multipliers", "num_res_blocks", "attention", "norm_groups")
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
        "tokenizer": {**_fields(tokenizer.codec, _CODEC), **_fields(tokenizer, _TOKENIZER)},
    }


def transformer_config(tokenizer: VQVAE, transformer: VAR) -> dict[str, Any]:
    """The sections of a config that describe a transformer and its tokenizer.

    Sampling is set as in the official FID evaluation.
    """
    return {
        **tokenizer_config(tokenizer),
        "model": _fields(transformer, _TRANSFORMER),
        "sampling": {"cfg": 1.5, "top_k": 900, "top_p": 0.96},
    }
