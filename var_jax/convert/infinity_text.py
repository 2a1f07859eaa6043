"""The transformers of Infinity (FoundationVision/Infinity), which read texts.

Their files do not say any levels, since they serve any; where none are given, they are those of
1024 px. Positions are always those of the grid of 1024 px. The 8B model, whose tokens are patches,
and what the released code offers beside (`swiglu`, `rms_norm`, a level's embedding in every chunk
of blocks) are not read.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from var_jax.aspect_ratios import SIDES
from var_jax.codecs.bitwise import Bitwise
from var_jax.convert import mapping, var
from var_jax.convert.layouts import Layout, Tensors, abstract_params
from var_jax.convert.lazy_state import LazyTensor
from var_jax.convert.mapping import Row, shape_of
from var_jax.convert.vit import depth, linear, made
from var_jax.heads.bitwise import BitwiseHead
from var_jax.network import Network
from var_jax.pyramid import ScalePyramid
from var_jax.transformer.rotary import Rotary2D
from var_jax.transformer.text_features import TextFeatures
from var_jax.transformer.var import VAR

#: The grid on which the cells of all levels stand.
GRID = (64, 64)

#: What is named as in VAR's files, but for the attention's `attn`, which is `sa` here.
_AS_VAR = tuple(
    dataclasses.replace(row, theirs=row.theirs.replace(".attn.", ".sa."))
    for row in var.ROWS
    if not row.ours.startswith("head/")
)
_OURS, _THEIRS = "transformer/blocks/cross_attention", "blocks.{stack}"
_HEADS = "(n h) c -> c n h"
#: Of the tensors that `view` makes. Letters: c i o width, f channels of the text encoder, h head
#: dim, n head, p token, s one of two logits, z bits of a token.
ROWS = (
    *_AS_VAR,
    Row("transformer/null_features", "cfg_uncond", "p f -> p f"),
    Row("transformer/feature_norm", "text_norm.weight", "f -> f"),
    Row("transformer/pool_query", "text_proj_for_sos.ca.mat_q", "1 n h -> n h"),
    Row("transformer/pool_key/kernel", "text_proj_for_sos.ca.mat_k.weight", "c f -> f c"),
    Row("transformer/pool_value/kernel", "text_proj_for_sos.ca.mat_v.weight", "c f -> f c"),
    Row("transformer/pool_value/bias", "text_proj_for_sos.ca.v_bias", "c -> c"),
    *linear("transformer/pool_out", "text_proj_for_sos.ca.proj"),
    *linear("transformer/tokens_up", "text_proj_for_ca.0"),
    *linear("transformer/tokens_out", "text_proj_for_ca.2"),
    Row(f"{_OURS}/norm_gain", f"{_THEIRS}.ca_norm.weight", "c -> c"),
    Row(f"{_OURS}/norm_bias", f"{_THEIRS}.ca_norm.bias", "c -> c"),
    *linear(f"{_OURS}/query", f"{_THEIRS}.ca.mat_q", _HEADS, "(n h) -> n h"),
    Row(f"{_OURS}/key/kernel", f"{_THEIRS}.ca.mat_k.weight", _HEADS),
    Row(f"{_OURS}/value/kernel", f"{_THEIRS}.ca.mat_v.weight", _HEADS),
    Row(f"{_OURS}/value/bias", f"{_THEIRS}.ca.v_bias", "(n h) -> n h"),
    *linear(f"{_OURS}/out", f"{_THEIRS}.ca.proj", "c (n h) -> n h c"),
    Row("head/projection/kernel", "head.weight", "(z s) c -> c s z"),
    Row("head/projection/bias", "head.bias", "(z s) -> s z"),
)
#: Names there that hold nothing to learn.
BUFFERS = (r".*\.zero_k_bias", r"lvl_1L", r"attn_bias_for_masking", r"Infinity_\w+")
#: 'module' is also what wrappers add to names, so readers of files remove it.
_CHUNK = re.compile(r"block_chunks\.(\d+)\.(?:module\.)?(\d+)\.(.+)")


@dataclasses.dataclass(frozen=True)
class TextTransformerShape(var.TransformerShape):
    """What the names and shapes of a file say.

    Attributes:
      feature_dim, max_length, pool_head_dim: as in `TextFeatures`.
      num_levels: that have an embedding.
    """

    feature_dim: int
    max_length: int
    pool_head_dim: int
    num_levels: int


def view(tensors: Tensors) -> Tensors:
    """The tensors as `ROWS` names them: blocks by their number whatever their chunk, keys and
    values apart, and a gain behind a cross-attention (`ca_gamma`) inside of it."""
    chunks = [m for m in map(_CHUNK.fullmatch, tensors) if m]
    size = 1 + max((int(m[2]) for m in chunks), default=0)
    names = {m[0]: f"blocks.{int(m[1]) * size + int(m[2])}.{m[3]}" for m in chunks}
    found = {names.get(name, name): tensor for name, tensor in tensors.items()}
    for name, tensor in list(found.items()):
        stem, _, kind = name.rpartition(".")
        if name.endswith(".ca.mat_kv.weight") and len(tensor.shape) == 2:
            del found[name]
            shape = (tensor.shape[0] // 2, tensor.shape[1])
            for i, letter in enumerate("kv"):
                split = made(tensor, shape, _half, tensor, i)
                found[name.replace("mat_kv", f"mat_{letter}")] = split
        elif kind == "ca_gamma":
            del found[name]
            for part in ("weight", "bias"):
                place = f"{stem}.ca.proj.{part}"
                if place in found:
                    plain = found[place]
                    found[place] = made(plain, plain.shape, _scaled, plain, tensor)
    return found


def _half(tensor: LazyTensor, part: int) -> np.ndarray:
    return np.split(tensor.read(), 2)[part]


def _scaled(tensor: LazyTensor, gain: LazyTensor) -> np.ndarray:
    x = tensor.read()
    return x * gain.read().reshape(-1, *[1] * (x.ndim - 1))


def _infer(
    tensors: Tensors,
    patch_nums: Sequence[int] | None = None,
    num_heads: int | None = None,
    what: str = "The file",
) -> TextTransformerShape:
    tensors = view(tensors)
    size = functools.partial(shape_of, tensors, what=what)
    hidden, width = size("blocks.0.ffn.fc1.weight", 2)
    _, heads, _, _ = size("blocks.0.sa.scale_mul_1H11", 4)
    if num_heads not in (None, heads):
        raise ValueError(f"{what} has {heads} heads, but num_heads is {num_heads}.")
    bits = size("word_embed.weight", 2)[1]
    if size("head.weight", 2)[0] != 2 * bits:
        raise ValueError(
            f"{what} has a head of {size('head.weight', 2)[0]} rows for tokens of {bits} bits; "
            "only heads of two rows a bit are read."
        )
    max_length, feature_dim = size("cfg_uncond", 2)
    return TextTransformerShape(
        depth=depth(tensors, r"blocks\.(\d+)\."),
        width=width,
        num_heads=heads,
        mlp_ratio=hidden / width,
        qk_norm=True,
        shared_adaln=True,
        num_classes=1,
        code_dim=bits,
        vocab_size=2,
        patch_nums=tuple(patch_nums or SIDES),
        feature_dim=feature_dim,
        max_length=max_length,
        pool_head_dim=feature_dim // size("text_proj_for_sos.ca.mat_q", 3)[1],
        num_levels=size("lvl_embed.weight", 2)[0],
    )


def build(shape: TextTransformerShape, pyramid: ScalePyramid, grid: tuple[int, int]) -> Network:
    """The modules of a file, for any levels and any grid of positions."""
    transformer = VAR(
        pyramid,
        shape.num_classes,
        shape.code_dim,
        shape.depth,
        shape.width,
        shape.num_heads,
        conditioner=TextFeatures(
            shape.width, shape.feature_dim, shape.max_length, pool_head_dim=shape.pool_head_dim
        ),
        positions=Rotary2D(shape.width, grid, shape.num_levels),
        mlp_ratio=shape.mlp_ratio,
        shared_adaln=shape.shared_adaln,
        cross_attention=True,
        cross_norm="input",
    )
    target = Bitwise(pyramid, shape.code_dim).target
    return Network(transformer, BitwiseHead(target, shape.width))


def _build(shape: TextTransformerShape, tensors: Tensors) -> Network:
    return build(shape, ScalePyramid.from_patch_nums(shape.patch_nums), GRID)


def _slots(network: Network, tensors: Tensors) -> dict[str, mapping.Slot]:
    return mapping.expand(ROWS, abstract_params(network))


TRANSFORMER = Layout(
    ("text_proj_for_sos.ca.mat_q", "cfg_uncond", "word_embed.weight", "head.weight"),
    _infer,
    _build,
    _slots,
    BUFFERS,
    view=view,
)


def model_config(network: Network) -> tuple[dict[str, Any], dict[str, Any]]:
    """The sections of a config that describe such a transformer and how it is sampled officially
    (`scripts/infer.sh`: cfg 4 is 3 here)."""
    transformer = network.transformer
    asked: Any = transformer.conditioner
    positions: Any = transformer.positions
    names = ("num_classes", "depth", "width", "num_heads", "mlp_ratio", "shared_adaln")
    features = ("feature_dim", "max_length", "pool_head_dim")
    model = {
        **{name: getattr(transformer, name) for name in names},
        "cross_attention": True,
        "cross_norm": transformer.cross_norm,
        "conditioner": {"kind": "text_features", **{k: getattr(asked, k) for k in features}},
        "positions": {
            "kind": "rotary_2d",
            "grid": list(positions.grid),
            "num_levels": positions.num_levels,
        },
        "head": {"kind": "bitwise"},
    }
    return model, {"cfg": 3.0, "cfg_schedule": "constant", "temperature": 0.5, "top_p": 0.97}
