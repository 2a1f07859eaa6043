"""What the files of MAR and of xAR have in common: two stacks of blocks as in a ViT."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from var_jax.convert.layouts import Tensors
from var_jax.convert.lazy_state import LazyTensor
from var_jax.convert.mapping import Row, shape_of

#: Heads of the published models by width; the files do not tell.
NUM_HEADS = {768: 12, 1024: 16, 1280: 16}


def linear(ours: str, theirs: str, axes: str = "o i -> i o", bias: str = "o -> o") -> list[Row]:
    """The rows of a linear layer."""
    return [
        Row(f"{ours}/kernel", f"{theirs}.weight", axes),
        Row(f"{ours}/bias", f"{theirs}.bias", bias),
    ]


def modulation(ours: str, theirs: str) -> list[Row]:
    """The rows of a linear layer to several vectors."""
    return linear(ours, theirs, "(s c) d -> d s c", "(s c) -> s c")


def attention(ours: str, theirs: str, biases: str) -> list[Row]:
    """The rows of an attention, of `apart`; biases: those that count, of 'qkv'."""
    return [
        Row(f"{ours}/qkv_kernel", f"{theirs}.qkv.weight", "(s n h) c -> c s n h"),
        *(Row(f"{ours}/{x}_bias", f"{theirs}.qkv.bias[{x}]", "(n h) -> n h") for x in biases),
        *linear(f"{ours}/out", f"{theirs}.proj", "c (n h) -> n h c"),
    ]


#: Beside the blocks. Letters here and above: c d i o width, h head dim, n head, p position, s one
#: of query, key and value, or of the modulation's vectors.
ROWS = (
    Row("transformer/encoder_position", "encoder_pos_embed_learned", "1 p c -> p c"),
    Row("transformer/decoder_position", "decoder_pos_embed_learned", "1 p c -> p c"),
    *linear("transformer/token_projection", "z_proj"),
    *linear("transformer/decoder_projection", "decoder_embed"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stacks:
    """What the names and shapes of a file say.

    Attributes:
      depth, decoder_depth, width, num_heads, num_classes, code_dim: as in `MAR` and `XAR`.
      patch_nums: side length of the only level.
      vocab_size: 0, there are no codes.
    """

    depth: int
    decoder_depth: int
    width: int
    num_heads: int
    num_classes: int
    code_dim: int
    patch_nums: tuple[int, ...]
    vocab_size: int = 0


def read_stacks(
    tensors: Tensors,
    positions: str,
    patch_nums: Sequence[int] | None,
    num_heads: int | None,
    what: str,
) -> dict[str, Any]:
    """Fields of `Stacks`, but for num_classes.

    Args:
      tensors: of the file.
      positions: name of a table [1, L, C].
      patch_nums, num_heads: see `Layout.infer`.
      what: names the file in messages.

    Raises:
      ValueError: other levels are given, the level is no square, the stacks differ in width, or
        nothing tells the heads.
    """
    width, code_dim = shape_of(tensors, "z_proj.weight", 2, what)
    _, length, _ = shape_of(tensors, positions, 3, what)
    side = math.isqrt(length)
    if side**2 != length or (patch_nums is not None and tuple(patch_nums) != (side,)):
        raise ValueError(
            f"{what} has {length} tokens in one square level, which patch_nums {patch_nums} is "
            "not; leave patch_nums out."
        )
    if shape_of(tensors, "decoder_embed.weight", 2, what) != (width, width):
        raise ValueError(f"{what} has a decoder of another width than its encoder's {width}.")
    num_heads = num_heads or NUM_HEADS.get(width)
    if not num_heads:
        raise ValueError(
            f"{what} has width {width}, of which its number of heads cannot be seen; give "
            "--num_heads."
        )
    return {
        "depth": depth(tensors, r"encoder_blocks\.(\d+)\."),
        "decoder_depth": depth(tensors, r"decoder_blocks\.(\d+)\."),
        "width": width,
        "num_heads": num_heads,
        "code_dim": code_dim,
        "patch_nums": (side,),
    }


def depth(tensors: Tensors, pattern: str) -> int:
    """How many blocks there are, of names in which the number is the pattern's group."""
    return 1 + max((int(m[1]) for name in tensors if (m := re.match(pattern, name))), default=-1)


def apart(tensors: Tensors) -> dict[str, LazyTensor]:
    """Each bias of queries, keys and values as three, which are named after it."""
    found = dict(tensors)
    for name, tensor in tensors.items():
        if name.endswith(".attn.qkv.bias") and len(tensor.shape) == 1:
            del found[name]
            for i, part in enumerate("qkv"):
                size = tensor.shape[0] // 3
                found[f"{name}[{part}]"] = made(tensor, (size,), _third, tensor, i)
    return found


def made(
    like: LazyTensor, shape: tuple[int, ...], make: Callable[..., np.ndarray], *args: Any
) -> LazyTensor:
    """A tensor that is made of others, of the type of one of them, when it is read."""
    return LazyTensor(shape, like.dtype, functools.partial(make, *args))


def _third(tensor: LazyTensor, part: int) -> np.ndarray:
    return np.split(tensor.read(), 3)[part]
