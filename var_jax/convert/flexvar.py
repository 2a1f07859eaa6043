"""The tokenizer and the transformer of FlexVAR (jiaosiyu1999/FlexVAR).

Its files do not say which levels were trained, since they serve any; where none are given, they are
VAR's.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from var_jax.codecs.ground_truth_vq import GroundTruthVQ
from var_jax.convert import mapping, var, vqvae
from var_jax.convert.layouts import (
    Layout,
    Tensors,
    abstract_params,
    make_network,
    make_tokenizer,
)
from var_jax.convert.mapping import Row, constant, shape_of
from var_jax.network import Network
from var_jax.pyramid import PATCH_NUMS, ScalePyramid
from var_jax.tokenizer.vqvae import VQVAE
from var_jax.transformer.resized_positions import ResizedPositions

#: As in `var.ROWS`; y x are rows and columns of the map of positions.
ROWS = (
    *(row for row in var.ROWS if row.ours not in ("transformer/position", "transformer/level")),
    Row("transformer/position", "pos_1LC", "1 c y x -> y x c"),
)
_BUFFERS = (r"attn_bias_for_masking", r"blocks\.\d+\.attn\.zero_k_bias")


def _infer(
    tensors: Tensors,
    patch_nums: Sequence[int] | None = None,
    num_heads: int | None = None,
    what: str = "The file",
) -> var.TransformerShape:
    _, width, _, _ = shape_of(tensors, "pos_1LC", 4, what)
    patch_nums = tuple(patch_nums or PATCH_NUMS[256])
    # VAR's own counts positions and levels, of which there are none here.
    length = ScalePyramid.from_patch_nums(patch_nums).length
    there = {"pos_1LC": (1, length, width), "lvl_embed.weight": (len(patch_nums), width)}
    stand_ins = {
        name: constant(shape, np.float32, lambda shape=shape: np.zeros(shape))
        for name, shape in there.items()
    }
    return var.infer({**tensors, **stand_ins}, patch_nums, num_heads, what)


def _build(shape: var.TransformerShape, tensors: Tensors) -> Network:
    positions = ResizedPositions(shape.width, tensors["pos_1LC"].shape[-1])
    return make_network(shape, positions=positions)


def _slots(network: Network, tensors: Tensors) -> dict[str, mapping.Slot]:
    return mapping.expand(ROWS, abstract_params(network))


TRANSFORMER = Layout(
    ("pos_1LC", "word_embed.weight"),
    _infer,
    _build,
    _slots,
    _BUFFERS,
    accepts=lambda tensors: len(tensors["pos_1LC"].shape) == 4,
)

_MIDDLE = {"block_1": "0", "attn_1": "1", "block_2": "2"}


def tokenizer_name(name: str, num_stages: int) -> str:
    """The name in FlexVAR's file of what VAR's calls `name`.

    Args:
      name: of VAR's tokenizer.
      num_stages: of the encoder; the decoder counts them from the lowest resolution.
    """
    found = re.fullmatch(r"(encoder|decoder)\.(down|up|mid)\.(\w+)\.(.*)", name)
    if not found:
        return name
    side, kind, place, rest = found.groups()
    if kind == "mid":
        return f"{side}.mid.{_MIDDLE[place]}.{rest}"
    number = int(place) if kind == "down" else num_stages - 1 - int(place)
    return f"{side}.conv_blocks.{number}.{re.sub(r'^block', 'res', rest)}"


def _infer_tokenizer(
    tensors: Tensors, patch_nums: Sequence[int] | None = None, what: str = "The file"
) -> vqvae.TokenizerShape:
    channels, image_channels, _, _ = shape_of(tensors, "encoder.conv_in.weight", 4, what)
    block = "encoder.conv_blocks.{stage}.res.{block}."
    multipliers, num_res_blocks = vqvae.stages(tensors, channels, what, block)
    vocab_size, code_dim = shape_of(tensors, "quantize.embedding.weight", 2, what)
    return vqvae.TokenizerShape(
        vocab_size=vocab_size,
        code_dim=code_dim,
        phi_sharing=0,
        phi_ratio=0.0,
        image_channels=image_channels,
        channels=channels,
        multipliers=multipliers,
        num_res_blocks=num_res_blocks,
        attention="encoder.mid.1.q.weight" in tensors,
        patch_nums=tuple(patch_nums or PATCH_NUMS[256]),
    )


def _build_tokenizer(shape: vqvae.TokenizerShape, tensors: Tensors) -> VQVAE:
    pyramid = ScalePyramid.from_patch_nums(shape.patch_nums)
    channels = tensors["encoder.conv_out.weight"].shape[0]
    codec = GroundTruthVQ(pyramid, shape.vocab_size, shape.code_dim)
    return make_tokenizer(shape, codec, latent_channels=channels, latent_kernel=1)


def _tokenizer_slots(tokenizer: VQVAE, tensors: Tensors) -> dict[str, mapping.Slot]:
    stages = len(tokenizer.multipliers)
    return mapping.expand(
        vqvae.rows(1, split_attention=True),
        abstract_params(tokenizer),
        lambda name: tokenizer_name(name, stages),
    )


TOKENIZER = Layout(
    (
        "quantize.embedding.weight",
        "encoder.conv_in.weight",
        "encoder.conv_out.weight",
        "encoder.conv_blocks.0.res.0.conv1.weight",
    ),
    _infer_tokenizer,
    _build_tokenizer,
    _tokenizer_slots,
    (r"quantize\.codebook_used",),
)
