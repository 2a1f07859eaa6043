"""The files of Infinity (FoundationVision/Infinity): autoencoders of bits, transformers for texts.

They do not say any levels, since they serve any; where none are given, those of a tokenizer are of
256 px, and those of a transformer of 1024 px.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from var_jax.codecs.bitwise import Bitwise
from var_jax.convert import mapping, vqvae
from var_jax.convert.layouts import Layout, Tensors, abstract_params, make_tokenizer
from var_jax.convert.mapping import shape_of
from var_jax.pyramid import ScalePyramid
from var_jax.tokenizer.vqvae import VQVAE

#: Side lengths of the levels of a square image of 256 px (`dynamic_resolution.py`, 0.06M).
PATCH_NUMS_256 = (1, 2, 4, 6, 8, 12, 16)
#: Convolutions beside the codec, which Infinity's autoencoder does not have.
_BESIDE = ("quant_conv", "post_quant_conv")


def name_there(name: str) -> str:
    """The name in Infinity's files of what VAR's tokenizer calls `name`: its layers wrap those of
    PyTorch."""
    *layers, kind, leaf = name.split(".")
    return ".".join([*layers, kind, "norm" if kind.startswith("norm") else "conv", leaf])


def _infer(
    tensors: Tensors, patch_nums: Sequence[int] | None = None, what: str = "The file"
) -> vqvae.TokenizerShape:
    def size(layer: str) -> tuple[int, ...]:
        return shape_of(tensors, f"{layer}.conv.weight", 4, what)

    channels, image_channels, _, _ = size("encoder.conv_in")
    bits = size("encoder.conv_out")[0]
    multipliers, num_res_blocks = vqvae.stages(tensors, channels, what, first="conv1.conv.weight")
    return vqvae.TokenizerShape(
        vocab_size=2**bits,
        code_dim=bits,
        phi_sharing=0,
        phi_ratio=0.0,
        image_channels=image_channels,
        channels=channels,
        multipliers=multipliers,
        num_res_blocks=num_res_blocks,
        attention=False,
        patch_nums=tuple(patch_nums or PATCH_NUMS_256),
    )


def _build(shape: vqvae.TokenizerShape, tensors: Tensors) -> VQVAE:
    codec = Bitwise(ScalePyramid.from_patch_nums(shape.patch_nums), shape.code_dim)
    return make_tokenizer(shape, codec, latent_kernel=1)


def _slots(tokenizer: VQVAE, tensors: Tensors) -> dict[str, mapping.Slot]:
    params = {k: v for k, v in abstract_params(tokenizer).items() if k not in _BESIDE}
    return mapping.expand(vqvae.rows(1), params, name_there)


def _constants(tokenizer: VQVAE) -> dict[str, Any]:
    bits = tokenizer.codec.feature_dim
    kernel, bias = np.eye(bits, dtype=np.float32)[None, None], np.zeros(bits, np.float32)
    return {name: {"kernel": kernel, "bias": bias} for name in _BESIDE}


TOKENIZER = Layout(
    ("encoder.conv_in.conv.weight", "encoder.conv_out.conv.weight", "decoder.conv_in.conv.weight"),
    _infer,
    _build,
    _slots,
    (r"quantizer?\..*\.mask",),
    constants=_constants,
)
