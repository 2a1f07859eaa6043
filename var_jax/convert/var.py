"""The official transformer's tensors (FoundationVision/VAR) and ours."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence

import numpy as np

from var_jax.convert.lazy_state import LazyTensor
from var_jax.convert.mapping import Row, constant, shape_of
from var_jax.pyramid import PATCH_NUMS, ScalePyramid

#: Our parameters are {'transformer': ..., 'head': ...}.
#: Letters: b vocabulary, c width, d width of the condition, g class, h head dim, l level, m MLP,
#: n head, p position, s one of query/key/value or of the modulation's vectors, z code channels.
ROWS = (
    Row("transformer/class_embedding", "class_emb.weight", "g c -> g c"),
    Row("transformer/start_position", "pos_start", "1 p c -> p c"),
    Row("transformer/position", "pos_1LC", "1 p c -> p c"),
    Row("transformer/level", "lvl_embed.weight", "l c -> l c"),
    Row("transformer/code_projection/kernel", "word_embed.weight", "c z -> z c"),
    Row("transformer/code_projection/bias", "word_embed.bias", "c -> c"),
    Row(
        "transformer/shared_modulation/kernel",
        "shared_ada_lin.1.weight",
        "(s c) d -> d s c",
    ),
    Row("transformer/shared_modulation/bias", "shared_ada_lin.1.bias", "(s c) -> s c"),
    Row("transformer/blocks/adaln/offset", "blocks.{stack}.ada_gss", "1 1 s c -> s c"),
    Row(
        "transformer/blocks/adaln/kernel",
        "blocks.{stack}.ada_lin.1.weight",
        "(s c) d -> d s c",
    ),
    Row("transformer/blocks/adaln/bias", "blocks.{stack}.ada_lin.1.bias", "(s c) -> s c"),
    Row(
        "transformer/blocks/attention/qkv_kernel",
        "blocks.{stack}.attn.mat_qkv.weight",
        "(s n h) c -> c s n h",
    ),
    Row("transformer/blocks/attention/q_bias", "blocks.{stack}.attn.q_bias", "(n h) -> n h"),
    Row("transformer/blocks/attention/v_bias", "blocks.{stack}.attn.v_bias", "(n h) -> n h"),
    Row(
        "transformer/blocks/attention/log_scale",
        "blocks.{stack}.attn.scale_mul_1H11",
        "1 n 1 1 -> n",
    ),
    Row(
        "transformer/blocks/attention/out/kernel",
        "blocks.{stack}.attn.proj.weight",
        "c (n h) -> n h c",
    ),
    Row("transformer/blocks/attention/out/bias", "blocks.{stack}.attn.proj.bias", "c -> c"),
    Row("transformer/blocks/mlp/up/kernel", "blocks.{stack}.ffn.fc1.weight", "m c -> c m"),
    Row("transformer/blocks/mlp/up/bias", "blocks.{stack}.ffn.fc1.bias", "m -> m"),
    Row("transformer/blocks/mlp/down/kernel", "blocks.{stack}.ffn.fc2.weight", "c m -> m c"),
    Row("transformer/blocks/mlp/down/bias", "blocks.{stack}.ffn.fc2.bias", "c -> c"),
    Row(
        "transformer/final_adaln/modulation/kernel",
        "head_nm.ada_lin.1.weight",
        "(s c) d -> d s c",
    ),
    Row(
        "transformer/final_adaln/modulation/bias",
        "head_nm.ada_lin.1.bias",
        "(s c) -> s c",
    ),
    Row("head/projection/kernel", "head.weight", "b c -> c b"),
    Row("head/projection/bias", "head.bias", "b -> b"),
)

#: Names there that hold nothing to learn.
BUFFERS = (r"lvl_1L", r"attn_bias_for_masking", r"blocks\.\d+\.attn\.zero_k_bias")

#: A dict of tensors with these names is a transformer.
SIGNATURE = ("pos_1LC", "word_embed.weight")


@dataclasses.dataclass(frozen=True)
class TransformerShape:
    """What the names and shapes of a file say about its transformer.

    Attributes:
      depth, width, num_heads, mlp_ratio, qk_norm, shared_adaln, num_classes, code_dim: as in
        `VAR`.
      vocab_size: of the head.
      patch_nums: side lengths of the levels.
    """

    depth: int
    width: int
    num_heads: int
    mlp_ratio: float
    qk_norm: bool
    shared_adaln: bool
    num_classes: int
    code_dim: int
    vocab_size: int
    patch_nums: tuple[int, ...]


def infer(
    state: Mapping[str, LazyTensor],
    patch_nums: Sequence[int] | None = None,
    num_heads: int | None = None,
    what: str = "The file",
) -> TransformerShape:
    """Reads the configuration off a file.

    Args:
      state: the transformer's tensors.
      patch_nums: side lengths of the levels; None where the file or a published pyramid
        decides them.
      num_heads: None where the attention's scales say it, or heads of 64 channels do.
      what: names the file in messages.

    Raises:
      ValueError: the file says too little, or contradicts the arguments.
    """

    def shape(name: str, rank: int) -> tuple[int, ...]:
        return shape_of(state, name, rank, what)

    _, length, width = shape("pos_1LC", 3)
    num_levels, _ = shape("lvl_embed.weight", 2)
    indices = [int(m[1]) for name in state if (m := re.match(r"blocks\.(\d+)\.", name))]
    scales = [t.shape for name, t in state.items() if name.endswith(".attn.scale_mul_1H11")]
    found_heads = scales[0][1] if scales and len(scales[0]) == 4 else None
    if found_heads is None and num_heads is None and width % 64:
        raise ValueError(
            f"{what} has width {width} and no attention scales, so its number of heads cannot be "
            "seen; give --num_heads."
        )
    if found_heads and num_heads and found_heads != num_heads:
        raise ValueError(f"{what} has {found_heads} heads, but num_heads is {num_heads}.")
    hidden, _ = shape("blocks.0.ffn.fc1.weight", 2)
    return TransformerShape(
        depth=max(indices, default=0) + 1,
        width=width,
        num_heads=found_heads or num_heads or width // 64,
        mlp_ratio=hidden / width,
        qk_norm=bool(scales),
        shared_adaln=any(name.startswith("shared_ada_lin.") for name in state),
        num_classes=shape("class_emb.weight", 2)[0] - 1,
        code_dim=shape("word_embed.weight", 2)[1],
        vocab_size=shape("head.weight", 2)[0],
        patch_nums=_patch_nums(state, patch_nums, length, num_levels, what),
    )


def _patch_nums(
    state: Mapping[str, LazyTensor],
    given: Sequence[int] | None,
    length: int,
    num_levels: int,
    what: str,
) -> tuple[int, ...]:
    """From the flag, else from the levels that the file lists, else from the known presets."""
    listed = _listed_patch_nums(state)
    if given is not None:
        given = tuple(given)
        has = (sum(n * n for n in given), len(given))
        if has != (length, num_levels) or listed not in (None, given):
            detail = f" {','.join(map(str, listed))}" if listed else ""
            raise ValueError(
                f"patch_nums {','.join(map(str, given))} are {has[0]} tokens in {has[1]} levels, "
                f"but {what} has {length} in {num_levels}{detail}."
            )
        return given
    if listed is not None and (sum(n * n for n in listed), len(listed)) == (length, num_levels):
        return listed
    for known in PATCH_NUMS.values():
        if (sum(n * n for n in known), len(known)) == (length, num_levels):
            return known
    raise ValueError(
        f"{what} has {length} tokens in {num_levels} levels, which no published pyramid has; give "
        "the side lengths of the levels, such as --patch_nums 1,2,3,5,8."
    )


def _listed_patch_nums(state: Mapping[str, LazyTensor]) -> tuple[int, ...] | None:
    """The side lengths by the buffer that holds each token's level, if it makes sense."""
    buffer = state.get("lvl_1L")
    if buffer is None or buffer.dtype.kind not in "iu" or not buffer.size:
        return None
    levels = buffer.read().reshape(-1)
    sizes = np.bincount(levels) if levels.min() == 0 and levels.max() < levels.size else None
    if sizes is None or np.any(np.diff(levels) < 0):
        return None
    sides = np.rint(np.sqrt(sizes)).astype(int)
    return tuple(int(n) for n in sides) if np.all(sides**2 == sizes) and sides.min() > 0 else None


def buffers(patch_nums: Sequence[int], width: int, depth: int) -> dict[str, LazyTensor]:
    """What the official module registers besides its parameters."""
    pyramid = ScalePyramid.from_patch_nums(patch_nums)
    length, levels = pyramid.length, pyramid.level_ids

    def mask() -> np.ndarray:
        return np.where(levels[:, None] >= levels[None], 0.0, -np.inf)

    return {
        "lvl_1L": constant((1, length), np.int64, lambda: levels),
        "attn_bias_for_masking": constant((1, 1, length, length), np.float32, mask),
        **{
            f"blocks.{i}.attn.zero_k_bias": constant((width,), np.float32, lambda: np.zeros(width))
            for i in range(depth)
        },
    }
