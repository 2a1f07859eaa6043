"""The autoencoder of latent diffusion (CompVis/latent-diffusion, KL f16) as MAR publishes it.

FlowAR, xAR and MAR learn from it. Its file says no levels: where none are given, there is one, of
the latents of 256 px.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from var_jax.codecs.kl_latent import KLLatent
from var_jax.convert import mapping, vqvae
from var_jax.convert.layouts import Layout, Tensors, abstract_params, make_tokenizer
from var_jax.convert.mapping import shape_of
from var_jax.pyramid import ScalePyramid
from var_jax.tokenizer.vqvae import VQVAE

#: What MAR, FlowAR and xAR multiply latents with, so that their variance is about 1.
LATENT_SCALE = 0.2325


def _infer(
    tensors: Tensors, patch_nums: Sequence[int] | None = None, what: str = "The file"
) -> vqvae.TokenizerShape:
    def size(name: str) -> tuple[int, ...]:
        return shape_of(tensors, f"{name}.weight", 4, what)

    channels, image_channels, _, _ = size("encoder.conv_in")
    latents, widest, _, _ = size("post_quant_conv")
    encoded, _, _, _ = size("encoder.conv_out")
    if encoded != 2 * latents or latents != widest:
        raise ValueError(
            f"{what} encodes to {encoded} channels and decodes {latents} of {widest}; only an "
            "autoencoder whose encoder gives mean and variance of each latent channel is read."
        )
    multipliers, num_res_blocks = vqvae.stages(tensors, channels, what)
    return vqvae.TokenizerShape(
        vocab_size=0,
        code_dim=latents,
        phi_sharing=0,
        phi_ratio=0.0,
        image_channels=image_channels,
        channels=channels,
        multipliers=multipliers,
        num_res_blocks=num_res_blocks,
        attention="encoder.mid.attn_1.q.weight" in tensors,
        patch_nums=tuple(patch_nums or (16,)),
        decoder_attention=f"decoder.up.{len(multipliers) - 1}.attn.0.q.weight" in tensors,
    )


def _build(shape: vqvae.TokenizerShape, tensors: Tensors) -> VQVAE:
    codec = KLLatent(ScalePyramid.from_patch_nums(shape.patch_nums), shape.code_dim)
    return make_tokenizer(shape, codec, latent_kernel=1)


def _slots(tokenizer: VQVAE, tensors: Tensors) -> dict[str, mapping.Slot]:
    learned = {k: v for k, v in abstract_params(tokenizer).items() if k != "codec"}
    return mapping.expand(vqvae.rows(1, split_attention=True), learned)


def _constants(tokenizer: VQVAE) -> dict[str, Any]:
    return {"codec": {"moments": np.array([0, LATENT_SCALE**-2], np.float32)}}


TOKENIZER = Layout(
    ("encoder.conv_in.weight", "quant_conv.weight", "encoder.mid.block_1.conv1.weight"),
    _infer,
    _build,
    _slots,
    # Latent diffusion's own files have the discriminator beside it.
    (r"loss\..*",),
    accepts=lambda tensors: "quantize.embedding.weight" not in tensors,
    constants=_constants,
)
