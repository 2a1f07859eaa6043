"""The transformer of xAR (OliverRensu/xAR), which is its denoiser."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from var_jax.convert import mapping, vit
from var_jax.convert.layouts import Layout, Tensors, abstract_params
from var_jax.convert.mapping import Row, shape_of
from var_jax.convert.vit import attention, linear, modulation
from var_jax.fields import Field
from var_jax.heads.linear_velocity import LinearVelocity
from var_jax.network import Network
from var_jax.pyramid import ScalePyramid
from var_jax.transformer.xar import XAR


def _blocks(side: str) -> list[Row]:
    ours, theirs = f"transformer/{side}/blocks", f"{side}_blocks.{{stack}}"
    return [
        *modulation(f"{ours}/adaln", f"{theirs}.ada_lin.1"),
        *attention(f"{ours}/attention", f"{theirs}.attn", "qkv"),
        *linear(f"{ours}/mlp/gate", f"{theirs}.mlp.fc1_g"),
        *linear(f"{ours}/mlp/up", f"{theirs}.mlp.fc1_x"),
        *linear(f"{ours}/mlp/down", f"{theirs}.mlp.fc2"),
    ]


#: Names of `vit.apart`. Letters: b class, c d i o width, h head dim, n head, p position, s one of
#: query, key and value or of the modulation's vectors.
ROWS = (
    Row("transformer/class_embedding", "class_emb.weight", "b c -> b c"),
    Row("transformer/encoder_position", "encoder_pos_embed_learned", "1 p c -> p c"),
    Row("transformer/decoder_position", "decoder_pos_embed_learned", "1 p c -> p c"),
    Row("transformer/input_norm", "z_proj_ln.weight", "c -> c"),
    Row("transformer/encoder_norm", "encoder_norm.weight", "c -> c"),
    Row("transformer/decoder_norm", "decoder_norm.weight", "c -> c"),
    *linear("transformer/time/up", "time_embed.mlp.0"),
    *linear("transformer/time/out", "time_embed.mlp.2"),
    *linear("transformer/token_projection", "z_proj"),
    *linear("transformer/decoder_projection", "decoder_embed"),
    *_blocks("encoder"),
    *_blocks("decoder"),
    *linear("head/out", "pred"),
)


@dataclasses.dataclass(frozen=True)
class XARShape:
    """What the names and shapes of a file say; that there are 2 x 2 cells they do not.

    Attributes:
      depth, decoder_depth, width, num_heads, num_classes, code_dim: as in `XAR`.
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


def _infer(
    tensors: Tensors,
    patch_nums: Sequence[int] | None = None,
    num_heads: int | None = None,
    what: str = "The file",
) -> XARShape:
    width, code_dim = shape_of(tensors, "z_proj.weight", 2, what)
    vit.check_widths(tensors, width, what)
    return XARShape(
        depth=vit.depth(tensors, r"encoder_blocks\.(\d+)\."),
        decoder_depth=vit.depth(tensors, r"decoder_blocks\.(\d+)\."),
        width=width,
        num_heads=vit.num_heads(width, num_heads, what),
        num_classes=shape_of(tensors, "class_emb.weight", 2, what)[0] - 1,
        code_dim=code_dim,
        patch_nums=vit.one_level(tensors, "encoder_pos_embed_learned", patch_nums, what),
    )


def _build(shape: XARShape, tensors: Tensors) -> Network:
    transformer = XAR(
        ScalePyramid.from_patch_nums(shape.patch_nums),
        shape.num_classes,
        shape.code_dim,
        shape.depth,
        shape.width,
        shape.num_heads,
        decoder_depth=shape.decoder_depth,
    )
    head = LinearVelocity(Field("latents", (shape.code_dim,), "float32"), shape.width)
    return Network(transformer, head)


def _slots(network: Network, tensors: Tensors) -> dict[str, mapping.Slot]:
    return mapping.expand(ROWS, abstract_params(network))


TRANSFORMER = Layout(
    ("encoder_pos_embed_learned", "pred.weight", "time_embed.mlp.0.weight"),
    _infer,
    _build,
    _slots,
    (r"mask", r".*\.rope\.freqs(_cos|_sin)?"),
    view=vit.apart,
)
