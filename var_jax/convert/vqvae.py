"""The official tokenizer's tensors (FoundationVision/VAR) and ours."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence

import numpy as np

from var_jax.convert.lazy_state import LazyTensor
from var_jax.convert.mapping import Row, constant, shape_of
from var_jax.pyramid import PATCH_NUMS

#: Letters: h w kernel, i o channels, v vocabulary, z code channels.
_CONV = (("kernel", "weight", "o i h w -> h w i o"), ("bias", "bias", "o -> o"))
_NORM = (("scale", "weight", "o -> o"), ("bias", "bias", "o -> o"))
_RESIDUAL = {
    "norm1": ("norm1", _NORM),
    "conv1": ("conv1", _CONV),
    "norm2": ("norm2", _NORM),
    "conv2": ("conv2", _CONV),
    "shortcut": ("nin_shortcut", _CONV),
}
_ATTENTION = {
    "norm": ("norm", _NORM),
    "qkv": ("qkv", _CONV),
    "proj_out": ("proj_out", _CONV),
}
_SIDE = {
    "conv_in": ("conv_in", _CONV),
    "norm_out": ("norm_out", _NORM),
    "conv_out": ("conv_out", _CONV),
}
#: (path here, name there, what is inside), a level of the tree each.
_PARTS = (
    ("encoder", "encoder", _SIDE),
    ("decoder", "decoder", _SIDE),
    ("encoder/down_{i}/block_{j}", "encoder.down.{i}.block.{j}", _RESIDUAL),
    ("decoder/up_{i}/block_{j}", "decoder.up.{i}.block.{j}", _RESIDUAL),
    ("encoder/down_{i}/attn_{j}", "encoder.down.{i}.attn.{j}", _ATTENTION),
    ("decoder/up_{i}/attn_{j}", "decoder.up.{i}.attn.{j}", _ATTENTION),
    ("encoder/mid/block_{i}", "encoder.mid.block_{i}", _RESIDUAL),
    ("decoder/mid/block_{i}", "decoder.mid.block_{i}", _RESIDUAL),
    ("encoder/mid/attn_{i}", "encoder.mid.attn_{i}", _ATTENTION),
    ("decoder/mid/attn_{i}", "decoder.mid.attn_{i}", _ATTENTION),
    ("encoder/down_{i}/downsample", "encoder.down.{i}.downsample", {"conv": ("conv", _CONV)}),
    ("decoder/up_{i}/upsample", "decoder.up.{i}.upsample", {"conv": ("conv", _CONV)}),
)
_AUTOENCODER_ROWS = tuple(
    Row(f"{here}/{ours}/{leaf}", f"{there}.{theirs}.{their_leaf}", axes)
    for here, there, inside in _PARTS
    for ours, (theirs, leaves) in inside.items()
    for leaf, their_leaf, axes in leaves
)
_OTHER_ROWS = tuple(
    Row(f"{name}/{leaf}", f"{name}.{their_leaf}", axes)
    for name in ("quant_conv", "post_quant_conv")
    for leaf, their_leaf, axes in _CONV
) + (Row("codec/codebook", "quantize.embedding.weight", "v z -> v z"),)

#: How the official names of the phi convolutions tell the way they are shared.
_PHI_ONE = "quantize.quant_resi.qresi."
_PHI_SHARED = "quantize.quant_resi.qresi_ls.{stack}."
_PHI_EACH = "quantize.quant_resi.{stack}."

#: Names there that hold nothing to learn.
BUFFERS = (r"quantize\.ema_vocab_hit_SV",)

#: A dict of tensors with these names is a tokenizer.
SIGNATURE = ("quantize.embedding.weight", "encoder.conv_in.weight")


@dataclasses.dataclass(frozen=True)
class TokenizerShape:
    """What the names and shapes of a file say about its tokenizer.

    Attributes:
      vocab_size, code_dim, phi_sharing: as in `ResidualVQ`; phi_ratio is 0 without any phi and
        the official 0.5 otherwise, which no shape tells.
      image_channels, channels, multipliers, num_res_blocks, attention: as in `VQVAE`.
      patch_nums: side lengths of the levels.
      decoder_attention: as in `VQVAE`.
    """

    vocab_size: int
    code_dim: int
    phi_sharing: int
    phi_ratio: float
    image_channels: int
    channels: int
    multipliers: tuple[int, ...]
    num_res_blocks: int
    attention: bool
    patch_nums: tuple[int, ...]
    decoder_attention: bool = True


#: The rows of an attention whose three products are layers of their own there.
_SPLIT_QKV = tuple(
    Row(f"{here}/qkv/{leaf}", f"{there}.{{part}}.{their_leaf}", axes, ("q", "k", "v"))
    for here, there, inside in _PARTS
    if inside is _ATTENTION
    for leaf, their_leaf, axes in _CONV
)


def rows(phi_sharing: int, split_attention: bool = False) -> tuple[Row, ...]:
    """The table.

    Args:
      phi_sharing: the names of the phi convolutions depend on how they are shared.
      split_attention: query, key and value are layers of their own there.
    """
    prefix = {0: _PHI_EACH, 1: _PHI_ONE}.get(phi_sharing, _PHI_SHARED)
    # A single convolution is not numbered there, but is a stack of one here.
    unit = "1 " if phi_sharing == 1 else ""
    phi = (
        Row("codec/phi_kernel", f"{prefix}weight", f"o i h w -> {unit}h w i o"),
        Row("codec/phi_bias", f"{prefix}bias", f"o -> {unit}o"),
    )
    autoencoder: tuple[Row, ...] = _AUTOENCODER_ROWS
    if split_attention:
        autoencoder = (*(row for row in autoencoder if "/qkv/" not in row.ours), *_SPLIT_QKV)
    return (*autoencoder, *_OTHER_ROWS, *phi)


def infer(
    state: Mapping[str, LazyTensor],
    patch_nums: Sequence[int] | None = None,
    what: str = "The file",
) -> TokenizerShape:
    """Reads the configuration off a file.

    Args:
      state: the tokenizer's tensors.
      patch_nums: side lengths of the levels, which a tokenizer's file tells only by their
        number. None takes the first published pyramid of that number.
      what: names the file in messages.

    Raises:
      ValueError: the file says too little, or contradicts the arguments.
    """

    def shape(name: str, rank: int) -> tuple[int, ...]:
        return shape_of(state, name, rank, what)

    vocab_size, code_dim = shape("quantize.embedding.weight", 2)
    channels, image_channels, _, _ = shape("encoder.conv_in.weight", 4)
    multipliers, num_res_blocks = stages(state, channels, what)
    phi_sharing, has_phi = _phi_sharing(state)
    hits = state.get("quantize.ema_vocab_hit_SV")
    num_levels = hits.shape[0] if hits is not None and len(hits.shape) == 2 else None
    if patch_nums is None:
        known = [p for p in PATCH_NUMS.values() if len(p) == num_levels]
        if not known:
            raise ValueError(
                f"{what} has {num_levels or 'an unknown number of'} levels, which no published "
                "pyramid has; give the side lengths of the levels, such as --patch_nums 1,2,3,5,8."
            )
        patch_nums = known[0]
    if phi_sharing == 0 and has_phi:
        count = sum(bool(re.fullmatch(r"quantize\.quant_resi\.\d+\.weight", n)) for n in state)
        if count != len(patch_nums):
            raise ValueError(
                f"{what} has {count} phi convolutions, one per level, but patch_nums has "
                f"{len(patch_nums)} levels."
            )
    return TokenizerShape(
        vocab_size=vocab_size,
        code_dim=code_dim,
        phi_sharing=phi_sharing,
        phi_ratio=0.5 if has_phi else 0.0,
        image_channels=image_channels,
        channels=channels,
        multipliers=multipliers,
        num_res_blocks=num_res_blocks,
        attention="encoder.mid.attn_1.qkv.weight" in state,
        patch_nums=tuple(patch_nums),
    )


def stages(
    state: Mapping[str, LazyTensor],
    channels: int,
    what: str,
    block: str = "encoder.down.{stage}.block.{block}.",
    first: str = "conv1.weight",
) -> tuple[tuple[int, ...], int]:
    """What the blocks of an encoder say.

    Args:
      state: the tokenizer's tensors.
      channels: width of the first convolution.
      what: names the file in messages.
      block: beginning of the names of a stage's residual block.
      first: name of its first convolution's kernel.

    Returns:
      The width of each stage in units of channels, and the number of residual blocks of a stage.

    Raises:
      ValueError: a width is no multiple of channels.
    """
    pattern = re.escape(block).replace(r"\{stage\}", r"(\d+)").replace(r"\{block\}", r"(\d+)")
    found = [(int(m[1]), int(m[2])) for name in state if (m := re.match(pattern, name))]
    multipliers = []
    for stage in range(1 + max((stage for stage, _ in found), default=0)):
        width = shape_of(state, f"{block.format(stage=stage, block=0)}{first}", 4, what)[0]
        if width % channels:
            raise ValueError(
                f"{what} has stage {stage} of width {width}, no multiple of the first width "
                f"{channels}."
            )
        multipliers.append(width // channels)
    return tuple(multipliers), 1 + max((number for _, number in found), default=0)


def _phi_sharing(state: Mapping[str, LazyTensor]) -> tuple[int, bool]:
    """(phi_sharing, whether there is any phi)."""
    pattern = re.compile(r"quantize\.quant_resi\.qresi_ls\.(\d+)\.")
    shared = [int(m[1]) for name in state if (m := pattern.match(name))]
    if shared:
        return max(shared) + 1, True
    if any(name.startswith(_PHI_ONE) for name in state):
        return 1, True
    return 0, any(name.startswith("quantize.quant_resi.") for name in state)


def buffers(num_levels: int, vocab_size: int) -> dict[str, LazyTensor]:
    """What the official module registers besides its parameters: codebook usage, none yet."""
    usage = (num_levels, vocab_size)
    return {"quantize.ema_vocab_hit_SV": constant(usage, np.float32, lambda: np.zeros(usage))}
