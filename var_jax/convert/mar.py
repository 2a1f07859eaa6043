"""The transformer of MAR (LTH14/mar): encoder, decoder and the network of its diffusion loss."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from var_jax.convert import mapping
from var_jax.convert.layouts import Layout, Tensors, abstract_params
from var_jax.convert.lazy_state import LazyTensor
from var_jax.convert.mapping import Row, shape_of
from var_jax.fields import Field
from var_jax.heads.diffusion import DiffusionHead
from var_jax.network import Network
from var_jax.pyramid import ScalePyramid
from var_jax.transformer.mar import MAR

#: Heads of the published models by width; the files do not tell.
_NUM_HEADS = {768: 12, 1024: 16, 1280: 16}


def _linear(ours: str, theirs: str, axes: str = "o i -> i o", bias: str = "o -> o") -> list[Row]:
    return [
        Row(f"{ours}/kernel", f"{theirs}.weight", axes),
        Row(f"{ours}/bias", f"{theirs}.bias", bias),
    ]


def _norm(ours: str, theirs: str, axes: str = "c -> c") -> list[Row]:
    return [
        Row(f"{ours}/scale", f"{theirs}.weight", axes),
        Row(f"{ours}/bias", f"{theirs}.bias", axes),
    ]


def _blocks(side: str) -> list[Row]:
    ours, theirs = f"transformer/{side}/blocks", f"{side}_blocks.{{stack}}"
    return [
        *_norm(f"{ours}/norms", f"{theirs}.norm1+norm2", "s c -> s c"),
        Row(f"{ours}/attention/qkv_kernel", f"{theirs}.attn.qkv.weight", "(s n h) c -> c s n h"),
        *(
            Row(f"{ours}/attention/{x}_bias", f"{theirs}.attn.qkv.bias[{x}]", "(n h) -> n h")
            for x in "qv"
        ),
        *_linear(f"{ours}/attention/out", f"{theirs}.attn.proj", "c (n h) -> n h c"),
        *_linear(f"{ours}/mlp/up", f"{theirs}.mlp.fc1"),
        *_linear(f"{ours}/mlp/down", f"{theirs}.mlp.fc2"),
    ]


def _modulation(ours: str, theirs: str) -> list[Row]:
    return _linear(ours, theirs, "(s c) d -> d s c", "(s c) -> s c")


_NET, _OURS = "diffloss.net", "head/denoiser"
#: Names of `_joined`. Letters: b class, c d i o width, h head dim, n head, p position, s one of
#: query, key and value, of the modulation's vectors or of two norms.
ROWS = (
    Row("transformer/class_embedding", "class_emb.weight+fake_latent", "b c -> b c"),
    Row("transformer/encoder_position", "encoder_pos_embed_learned", "1 p c -> p c"),
    Row("transformer/decoder_position", "decoder_pos_embed_learned", "1 p c -> p c"),
    Row("transformer/state_position", "diffusion_pos_embed_learned", "1 p c -> p c"),
    Row("transformer/mask_embedding", "mask_token", "1 1 c -> 1 c"),
    *_linear("transformer/token_projection", "z_proj"),
    *_linear("transformer/decoder_projection", "decoder_embed"),
    *_norm("transformer/input_norm", "z_proj_ln"),
    *_norm("transformer/encoder_norm", "encoder_norm"),
    *_norm("transformer/decoder_norm", "decoder_norm"),
    *_blocks("encoder"),
    *_blocks("decoder"),
    *_linear(f"{_OURS}/latents", f"{_NET}.input_proj"),
    *_linear(f"{_OURS}/state", f"{_NET}.cond_embed"),
    *_linear(f"{_OURS}/time/up", f"{_NET}.time_embed.mlp.0"),
    *_linear(f"{_OURS}/time/out", f"{_NET}.time_embed.mlp.2"),
    *_norm(f"{_OURS}/blocks", f"{_NET}.res_blocks.{{stack}}.in_ln"),
    *_linear(f"{_OURS}/blocks/up", f"{_NET}.res_blocks.{{stack}}.mlp.0"),
    *_linear(f"{_OURS}/blocks/down", f"{_NET}.res_blocks.{{stack}}.mlp.2"),
    *_modulation(f"{_OURS}/blocks/adaln", f"{_NET}.res_blocks.{{stack}}.adaLN_modulation.1"),
    *_modulation(f"{_OURS}/adaln", f"{_NET}.final_layer.adaLN_modulation.1"),
    *_modulation(f"{_OURS}/out", f"{_NET}.final_layer.linear"),
)


@dataclasses.dataclass(frozen=True)
class MARShape:
    """What the names and shapes of a file say.

    Attributes:
      depth, decoder_depth, width, num_heads, num_buffer, mlp_ratio, num_classes, code_dim: as in
        `MAR`.
      net_width, net_depth: as in `DiffusionHead`.
      patch_nums: side length of the only level.
      vocab_size: 0, there are no codes.
    """

    depth: int
    decoder_depth: int
    width: int
    num_heads: int
    num_buffer: int
    mlp_ratio: float
    num_classes: int
    code_dim: int
    net_width: int
    net_depth: int
    patch_nums: tuple[int, ...]
    vocab_size: int = 0


def _infer(
    tensors: Tensors,
    patch_nums: Sequence[int] | None = None,
    num_heads: int | None = None,
    what: str = "The file",
) -> MARShape:
    def shape(name: str, rank: int) -> tuple[int, ...]:
        return shape_of(tensors, name, rank, what)

    def depth(pattern: str) -> int:
        return 1 + max((int(m[1]) for n in tensors if (m := re.match(pattern, n))), default=-1)

    _, buffered, width = shape("encoder_pos_embed_learned", 3)
    _, length, _ = shape("diffusion_pos_embed_learned", 3)
    side = math.isqrt(length)
    if side**2 != length or patch_nums not in (None, (side,)):
        raise ValueError(
            f"{what} has {length} tokens in one square level, which patch_nums {patch_nums} is "
            "not; leave patch_nums out."
        )
    if shape("decoder_embed.weight", 2) != (width, width):
        raise ValueError(f"{what} has a decoder of another width than its encoder's {width}.")
    num_heads = num_heads or _NUM_HEADS.get(width)
    if not num_heads:
        raise ValueError(
            f"{what} has width {width}, of which its number of heads cannot be seen; give "
            "--num_heads."
        )
    net_width, code_dim = shape(f"{_NET}.input_proj.weight", 2)
    return MARShape(
        depth=depth(r"encoder_blocks\.(\d+)\."),
        decoder_depth=depth(r"decoder_blocks\.(\d+)\."),
        width=width,
        num_heads=num_heads,
        num_buffer=buffered - length,
        mlp_ratio=shape("encoder_blocks.0.mlp.fc1.weight", 2)[0] / width,
        num_classes=shape("class_emb.weight", 2)[0],
        code_dim=code_dim,
        net_width=net_width,
        net_depth=depth(r"diffloss\.net\.res_blocks\.(\d+)\."),
        patch_nums=(side,),
    )


def _build(shape: MARShape, tensors: Tensors) -> Network:
    transformer = MAR(
        ScalePyramid.from_patch_nums(shape.patch_nums),
        shape.num_classes,
        shape.code_dim,
        shape.depth,
        shape.width,
        shape.num_heads,
        decoder_depth=shape.decoder_depth,
        num_buffer=shape.num_buffer,
        mlp_ratio=shape.mlp_ratio,
    )
    target = Field("latents", (shape.code_dim,), "float32")
    head = DiffusionHead(target, shape.width, shape.net_width, shape.net_depth)
    return Network(transformer, head)


def _slots(network: Network, tensors: Tensors) -> dict[str, mapping.Slot]:
    return mapping.expand(ROWS, abstract_params(network))


def _joined(tensors: Tensors) -> Tensors:
    """Where two tensors are one parameter here, or one is several: those, named after theirs.

    What does not fit each other stays as it is, to be complained about by the name in the file.
    """
    found = dict(tensors)
    labels, null = "class_emb.weight", "fake_latent"
    if labels in found and null in found and found[null].shape == (1, *found[labels].shape[1:]):
        table, row = found.pop(labels), found.pop(null)
        found[f"{labels}+{null}"] = _made(
            (table.shape[0] + 1, *table.shape[1:]),
            lambda: np.concatenate([table.read(), row.read()]),
        )
    for name, tensor in tensors.items():
        if m := re.fullmatch(r"((?:en|de)coder_blocks\.\d+\.norm)1\.(weight|bias)", name):
            other = f"{m[1]}2.{m[2]}"
            if other in found and found[other].shape == tensor.shape:
                pair = found.pop(name), found.pop(other)
                # A block stores what is added to a scale of 1.
                start = 1 if m[2] == "weight" else 0
                found[f"{m[1]}1+norm2.{m[2]}"] = _made((2, *tensor.shape), _stack, pair, start)
        elif name.endswith(".attn.qkv.bias") and len(tensor.shape) == 1:
            del found[name]
            size = tensor.shape[0] // 3
            for i, part in enumerate("qkv"):
                found[f"{name}[{part}]"] = _made((size,), _third, tensor, i)
    return found


def _made(shape: tuple[int, ...], make: Callable[..., np.ndarray], *args: Any) -> LazyTensor:
    return LazyTensor(shape, np.dtype(np.float32), functools.partial(make, *args))


def _stack(pair: Sequence[LazyTensor], start: float) -> np.ndarray:
    return np.stack([x.read().astype(np.float32) for x in pair]) - start


def _third(tensor: LazyTensor, part: int) -> np.ndarray:
    return np.split(tensor.read(), 3)[part]


TRANSFORMER = Layout(
    ("diffusion_pos_embed_learned", "mask_token", f"{_NET}.input_proj.weight"),
    _infer,
    _build,
    _slots,
    # A bias of the keys moves all logits of a query alike.
    (r".*\.attn\.qkv\.bias\[k\]",),
    view=_joined,
)
