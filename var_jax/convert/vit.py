"""What the files of MAR and of xAR, whose blocks are a ViT's, have in common."""

from __future__ import annotations

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
_NUM_HEADS = {768: 12, 1024: 16, 1280: 16}


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


def apart(tensors: Tensors) -> dict[str, LazyTensor]:
    """Each bias of queries, keys and values as three, which are named after it."""
    found = dict(tensors)
    for name, tensor in tensors.items():
        if name.endswith(".attn.qkv.bias") and len(tensor.shape) == 1:
            del found[name]
            for i, part in enumerate("qkv"):
                found[f"{name}[{part}]"] = made((tensor.shape[0] // 3,), _third, tensor, i)
    return found


def made(shape: tuple[int, ...], make: Callable[..., np.ndarray], *args: Any) -> LazyTensor:
    """A tensor that is made of others when it is read."""
    return LazyTensor(shape, np.dtype(np.float32), functools.partial(make, *args))


def _third(tensor: LazyTensor, part: int) -> np.ndarray:
    return np.split(tensor.read(), 3)[part]


def depth(tensors: Tensors, pattern: str) -> int:
    """How many blocks there are, of names in which the number is the pattern's group."""
    return 1 + max((int(m[1]) for name in tensors if (m := re.match(pattern, name))), default=-1)


def num_heads(width: int, given: int | None, what: str) -> int:
    """Heads of a width.

    Raises:
      ValueError: none are given, and no published model is so wide.
    """
    found = given or _NUM_HEADS.get(width)
    if not found:
        raise ValueError(
            f"{what} has width {width}, of which its number of heads cannot be seen; give "
            "--num_heads."
        )
    return found


def one_level(
    tensors: Tensors, name: str, patch_nums: Sequence[int] | None, what: str
) -> tuple[int, ...]:
    """patch_nums of the only level, by a table [1, L, C] of positions.

    Raises:
      ValueError: others are given, or the level is no square.
    """
    _, length, _ = shape_of(tensors, name, 3, what)
    side = math.isqrt(length)
    if side**2 != length or (patch_nums is not None and tuple(patch_nums) != (side,)):
        raise ValueError(
            f"{what} has {length} tokens in one square level, which patch_nums {patch_nums} is "
            "not; leave patch_nums out."
        )
    return (side,)


def check_widths(tensors: Tensors, width: int, what: str) -> None:
    """Raises ValueError where the second stack is not as wide as the first."""
    if shape_of(tensors, "decoder_embed.weight", 2, what) != (width, width):
        raise ValueError(f"{what} has a decoder of another width than its encoder's {width}.")
