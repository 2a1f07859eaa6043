"""The transformer of xAR (OliverRensu/xAR), which is its denoiser.

That it draws 2 x 2 cells its file does not say.
"""

from __future__ import annotations

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


#: Names of `vit.apart`; letters as in `vit.ROWS`, and b class.
ROWS = (
    Row("transformer/class_embedding", "class_emb.weight", "b c -> b c"),
    *vit.ROWS,
    Row("transformer/input_norm", "z_proj_ln.weight", "c -> c"),
    Row("transformer/encoder_norm", "encoder_norm.weight", "c -> c"),
    Row("transformer/decoder_norm", "decoder_norm.weight", "c -> c"),
    *linear("transformer/time/up", "time_embed.mlp.0"),
    *linear("transformer/time/out", "time_embed.mlp.2"),
    *_blocks("encoder"),
    *_blocks("decoder"),
    *linear("head/out", "pred"),
)


def _infer(
    tensors: Tensors,
    patch_nums: Sequence[int] | None = None,
    num_heads: int | None = None,
    what: str = "The file",
) -> vit.Stacks:
    positions = "encoder_pos_embed_learned"
    return vit.Stacks(
        **vit.read_stacks(tensors, positions, patch_nums, num_heads, what),
        num_classes=shape_of(tensors, "class_emb.weight", 2, what)[0] - 1,
    )


def _build(shape: vit.Stacks, tensors: Tensors) -> Network:
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
