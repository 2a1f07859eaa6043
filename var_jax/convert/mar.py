"""The transformer of MAR (LTH14/mar): encoder, decoder and the network of its diffusion loss."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

import numpy as np

from var_jax.convert import mapping, vit
from var_jax.convert.layouts import Layout, Tensors, abstract_params
from var_jax.convert.lazy_state import LazyTensor
from var_jax.convert.mapping import Row, shape_of
from var_jax.convert.vit import attention, linear, modulation
from var_jax.fields import Field
from var_jax.heads.diffusion import DiffusionHead
from var_jax.network import Network
from var_jax.pyramid import ScalePyramid
from var_jax.transformer.mar import MAR


def _norm(ours: str, theirs: str, axes: str = "c -> c") -> list[Row]:
    return [
        Row(f"{ours}/scale", f"{theirs}.weight", axes),
        Row(f"{ours}/bias", f"{theirs}.bias", axes),
    ]


def _blocks(side: str) -> list[Row]:
    ours, theirs = f"transformer/{side}/blocks", f"{side}_blocks.{{stack}}"
    return [
        *_norm(f"{ours}/norms", f"{theirs}.norm1+norm2", "s c -> s c"),
        *attention(f"{ours}/attention", f"{theirs}.attn", "qv"),
        *linear(f"{ours}/mlp/up", f"{theirs}.mlp.fc1"),
        *linear(f"{ours}/mlp/down", f"{theirs}.mlp.fc2"),
    ]


_NET, _OURS = "diffloss.net", "head/denoiser"
#: Names of `_joined`; letters as in `vit.ROWS`, and b class, s also one of two norms.
ROWS = (
    Row("transformer/class_embedding", "class_emb.weight+fake_latent", "b c -> b c"),
    *vit.ROWS,
    Row("transformer/state_position", "diffusion_pos_embed_learned", "1 p c -> p c"),
    Row("transformer/mask_embedding", "mask_token", "1 1 c -> 1 c"),
    *_norm("transformer/input_norm", "z_proj_ln"),
    *_norm("transformer/encoder_norm", "encoder_norm"),
    *_norm("transformer/decoder_norm", "decoder_norm"),
    *_blocks("encoder"),
    *_blocks("decoder"),
    *linear(f"{_OURS}/latents", f"{_NET}.input_proj"),
    *linear(f"{_OURS}/state", f"{_NET}.cond_embed"),
    *linear(f"{_OURS}/time/up", f"{_NET}.time_embed.mlp.0"),
    *linear(f"{_OURS}/time/out", f"{_NET}.time_embed.mlp.2"),
    *_norm(f"{_OURS}/blocks", f"{_NET}.res_blocks.{{stack}}.in_ln"),
    *linear(f"{_OURS}/blocks/up", f"{_NET}.res_blocks.{{stack}}.mlp.0"),
    *linear(f"{_OURS}/blocks/down", f"{_NET}.res_blocks.{{stack}}.mlp.2"),
    *modulation(f"{_OURS}/blocks/adaln", f"{_NET}.res_blocks.{{stack}}.adaLN_modulation.1"),
    *modulation(f"{_OURS}/adaln", f"{_NET}.final_layer.adaLN_modulation.1"),
    *modulation(f"{_OURS}/out", f"{_NET}.final_layer.linear"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MARShape(vit.Stacks):
    """What the names and shapes of a file say.

    Attributes:
      num_buffer, mlp_ratio: as in `MAR`.
      net_width, net_depth: as in `DiffusionHead`.
      Others as in `Stacks`.
    """

    num_buffer: int
    mlp_ratio: float
    net_width: int
    net_depth: int


def _infer(
    tensors: Tensors,
    patch_nums: Sequence[int] | None = None,
    num_heads: int | None = None,
    what: str = "The file",
) -> MARShape:
    positions = "diffusion_pos_embed_learned"
    stacks = vit.read_stacks(tensors, positions, patch_nums, num_heads, what)
    _, length, width = shape_of(tensors, positions, 3, what)
    return MARShape(
        **stacks,
        num_classes=shape_of(tensors, "class_emb.weight", 2, what)[0],
        num_buffer=shape_of(tensors, "encoder_pos_embed_learned", 3, what)[1] - length,
        mlp_ratio=shape_of(tensors, "encoder_blocks.0.mlp.fc1.weight", 2, what)[0] / width,
        net_width=shape_of(tensors, f"{_NET}.input_proj.weight", 2, what)[0],
        net_depth=vit.depth(tensors, r"diffloss\.net\.res_blocks\.(\d+)\."),
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
    found = vit.apart(tensors)
    labels, null = "class_emb.weight", "fake_latent"
    if labels in found and null in found and found[null].shape == (1, *found[labels].shape[1:]):
        table, row = found.pop(labels), found.pop(null)
        found[f"{labels}+{null}"] = vit.made(
            table,
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
                found[f"{m[1]}1+norm2.{m[2]}"] = vit.made(
                    tensor, (2, *tensor.shape), _stack, pair, start
                )
    return found


def _stack(pair: Sequence[LazyTensor], start: float) -> np.ndarray:
    return np.stack([x.read().astype(np.float32) for x in pair]) - start


TRANSFORMER = Layout(
    ("diffusion_pos_embed_learned", "mask_token", f"{_NET}.input_proj.weight"),
    _infer,
    _build,
    _slots,
    # A bias of the keys moves all logits of a query alike.
    (r".*\.attn\.qkv\.bias\[k\]",),
    view=_joined,
)
