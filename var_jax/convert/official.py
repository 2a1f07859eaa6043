"""Whole models from the files of published codes, and to those of FoundationVision/VAR."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from jaxtyping import PyTree

from var_jax.codecs.residual_vq import ResidualVQ
from var_jax.context import BlockCausal
from var_jax.convert import (
    flexvar,
    hmar,
    infinity,
    infinity_text,
    kl,
    mapping,
    mar,
    var,
    vit,
    vqvae,
    xar,
)
from var_jax.convert.layouts import Layout, abstract_params, make_network, make_tokenizer
from var_jax.convert.lazy_state import LazyState, LazyTensor
from var_jax.convert.torch_file import open_state
from var_jax.network import Network
from var_jax.pyramid import ScalePyramid
from var_jax.tokenizer.vqvae import VQVAE
from var_jax.transformer.var import VAR

#: What the official tokenizer's constructor leaves no choice about.
_FIXED = {
    "image_channels": 3,
    "multipliers": (1, 1, 2, 2, 4),
    "num_res_blocks": 2,
    "attention": True,
    "decoder_attention": True,
    "norm_groups": 32,
    "patch_size": 1,
    "latent_channels": 0,
    "latent_kernel": 3,
}


def build_tokenizer(shape: vqvae.TokenizerShape) -> VQVAE:
    """The module that a tokenizer's file describes."""
    codec = ResidualVQ(
        ScalePyramid.from_patch_nums(shape.patch_nums),
        shape.vocab_size,
        shape.code_dim,
        shape.phi_sharing,
        shape.phi_ratio,
    )
    return make_tokenizer(shape, codec)


def build_network(shape: var.TransformerShape) -> Network:
    """The modules that a transformer's file describes."""
    return make_network(shape)


def abstract_tokenizer(tokenizer: VQVAE) -> PyTree:
    """Shapes of the tokenizer's parameters, nested dicts."""
    return abstract_params(tokenizer)


def abstract_network(network: Network) -> PyTree:
    """Shapes of {'transformer': ..., 'head': ...}, nested dicts."""
    return abstract_params(network)


def tokenizer_slots(tokenizer: VQVAE) -> dict[str, mapping.Slot]:
    """The official names of the tokenizer's parameters."""
    return mapping.expand(vqvae.rows(tokenizer.codec.phi_sharing), abstract_tokenizer(tokenizer))


def network_slots(network: Network) -> dict[str, mapping.Slot]:
    """The official names of the transformer's and the head's parameters."""
    return mapping.expand(var.ROWS, abstract_network(network))


TransformerShape = var.TransformerShape | vit.Stacks

#: Of the codes whose files are read, by kind of model; the first that fits a file counts.
LAYOUTS: dict[str, tuple[Layout, ...]] = {
    "tokenizer": (
        flexvar.TOKENIZER,
        infinity.TOKENIZER,
        kl.TOKENIZER,
        Layout(
            vqvae.SIGNATURE,
            vqvae.infer,
            lambda shape, tensors: build_tokenizer(shape),
            lambda tokenizer, tensors: tokenizer_slots(tokenizer),
            vqvae.BUFFERS,
        ),
    ),
    "transformer": (
        hmar.TRANSFORMER,
        infinity_text.TRANSFORMER,
        mar.TRANSFORMER,
        xar.TRANSFORMER,
        flexvar.TRANSFORMER,
        Layout(
            var.SIGNATURE,
            var.infer,
            lambda shape, tensors: build_network(shape),
            lambda network, tensors: network_slots(network),
            var.BUFFERS,
        ),
    ),
}


def layout_of(kind: str, tensors: Mapping[str, LazyTensor]) -> Layout:
    """The code that names tensors so; see `select`."""
    return next(layout for layout in LAYOUTS[kind] if layout.found_in(tensors))


def select(
    state: LazyState, kind: str, group: str | None = None, fall_back: bool = False
) -> Mapping[str, LazyTensor]:
    """The tensors of a file that are a tokenizer or a transformer.

    Args:
      state: an open file: a bare dict, nested ones such as the official trainer's, or one in
        which the names of several models have a prefix each, such as Lightning's.
      kind: 'tokenizer' or 'transformer'.
      group: the dict or prefix to take, or one around it; None where there is only one.
      fall_back: where nothing is in `group`, take the only one.

    Raises:
      ValueError: there is none, or there are several; the names that there are are listed.
    """
    groups = state.groups()
    matches = {
        ".".join(part for part in (name, prefix) if part): tensors
        for name, found in groups.items()
        for prefix, tensors in _find(found, kind).items()
    }
    named = [n for n in matches if group is None or n == group or n.startswith(f"{group}.")]
    if not named and fall_back:
        named = list(matches)
    if len(named) == 1:
        return matches[named[0]]
    if matches:
        asked = f", and {len(named)} are in {group!r}" if group is not None else ""
        raise ValueError(
            f"{state.path} holds {len(matches)} dicts that are each a {kind}: "
            f"{', '.join(name or 'the top' for name in sorted(matches))}{asked}; give one of them "
            "as the group (--group)."
        )
    known = [" and ".join(layout.signature) for layout in LAYOUTS[kind]]
    found = [f"{n or 'the top'} has {', '.join(list(g)[:4])}, ..." for n, g in groups.items()]
    raise ValueError(
        f"{state.path} holds no official {kind}, which would have "
        f"{' or '.join(known)}. {'; '.join(found[:5]) or 'There are no tensors'}."
    )


def _find(group: Mapping[str, LazyTensor], kind: str) -> dict[str, dict[str, LazyTensor]]:
    """The models in a dict of tensors: prefix of the names (often '') -> tensors without it."""
    found: dict[str, dict[str, LazyTensor]] = {}
    for layout in LAYOUTS[kind]:
        first = layout.signature[0]
        for name in group:
            prefix = name[: -len(first)]
            inside = name == first or name.endswith(f".{first}")
            if not inside or prefix.rstrip(".") in found:
                continue
            tensors = {n[len(prefix) :]: t for n, t in group.items() if n.startswith(prefix)}
            if layout.found_in(tensors):
                found[prefix.rstrip(".")] = tensors
    return found


def read_tokenizer(
    path: str,
    patch_nums: Sequence[int] | None = None,
    group: str | None = None,
    fall_back: bool = False,
) -> tuple[VQVAE, dict[str, Any]]:
    """A tokenizer from an official file.

    Args:
      path: `.pth` or safetensors file, local or gs://; see open_state.
      patch_nums: side lengths of the levels; None where a published pyramid decides them.
      group, fall_back: see select.

    Returns:
      The module and its parameters, float32 numpy arrays.

    Raises:
      FileNotFoundError, ValueError: one sentence; what is missing or too much is listed.
    """
    with open_state(path) as state:
        chosen = select(state, "tokenizer", group, fall_back)
        layout = layout_of("tokenizer", chosen)
        tokenizer = layout.build(layout.infer(chosen, patch_nums, path), chosen)
        return tokenizer, _read(layout, tokenizer, chosen, path)


def _read(
    layout: Layout, module: Any, tensors: Mapping[str, LazyTensor], path: str
) -> dict[str, Any]:
    """The parameters of a module, of a file that is checked first."""
    slots, tensors = layout.slots(module, tensors), layout.view(tensors)
    mapping.check(tensors, slots, layout.buffers, path)
    constants = layout.constants(module)
    learned = {k: v for k, v in abstract_params(module).items() if k not in constants}
    return mapping.read(tensors, slots, learned, path) | constants


def describe_transformer(
    path: str,
    patch_nums: Sequence[int] | None = None,
    num_heads: int | None = None,
    group: str | None = None,
) -> TransformerShape:
    """The configuration of a transformer's file, checked against all of its names and shapes."""
    with open_state(path) as state:
        chosen = select(state, "transformer", group)
        layout = layout_of("transformer", chosen)
        shape = layout.infer(chosen, patch_nums, num_heads, path)
        slots = layout.slots(layout.build(shape, chosen), chosen)
        mapping.check(layout.view(chosen), slots, layout.buffers, path)
        return shape


def check_match(
    tokenizer: VQVAE, shape: TransformerShape, tokenizer_path: str, transformer_path: str
) -> None:
    """Refuses a tokenizer that the transformer cannot have been trained with.

    Raises:
      ValueError: another vocabulary, code width or pyramid.
    """
    codec = tokenizer.codec
    for name, there, here in (
        ("codes", codec.target.num_values, shape.vocab_size),
        ("channels per code", codec.code_dim, shape.code_dim),
        ("levels", codec.pyramid.patch_nums, shape.patch_nums),
    ):
        if there != here:
            raise ValueError(
                f"The tokenizer {tokenizer_path} does not belong to the transformer "
                f"{transformer_path}: it has {there} {name}, the transformer {here}."
            )


def read_network(
    path: str,
    patch_nums: Sequence[int] | None = None,
    num_heads: int | None = None,
    group: str | None = None,
) -> tuple[Network, dict[str, Any]]:
    """A transformer from an official file; see `read_tokenizer` and `var.infer`.

    Returns:
      The modules and {'transformer': ..., 'head': ...}, float32 numpy arrays.
    """
    with open_state(path) as state:
        chosen = select(state, "transformer", group)
        layout = layout_of("transformer", chosen)
        network = layout.build(layout.infer(chosen, patch_nums, num_heads, path), chosen)
        return network, _read(layout, network, chosen, path)


def tokenizer_tensors(tokenizer: VQVAE, params: PyTree) -> dict[str, LazyTensor]:
    """The official state dict of a tokenizer, buffers included; tensors are made when read.

    Args:
      tokenizer: its module.
      params: numpy arrays.

    Raises:
      ValueError: the official code has no such tokenizer.
    """
    if not isinstance(tokenizer.codec, ResidualVQ):
        raise ValueError(
            f"The official code knows residual codes only, not {type(tokenizer.codec).__name__}."
        )
    for name, official in _FIXED.items():
        here = getattr(tokenizer, name)
        if here != official:
            raise ValueError(
                f"The official tokenizer always has {name} {official}, this one has {here}; it "
                "cannot be exported."
            )
    ways = tokenizer.codec.down, tokenizer.codec.up
    if ways != ("area", "bicubic"):
        raise ValueError(
            f"The official tokenizer resizes by area and bicubic, this one by {ways}; it cannot be "
            "exported."
        )
    codec = codec_tensors(tokenizer.codec, params["codec"])
    rest = {name: part for name, part in params.items() if name != "codec"}
    slots = mapping.expand(vqvae.rows(tokenizer.codec.phi_sharing), rest)
    return {**mapping.tensors(rest, slots), **codec}


def codec_tensors(codec: ResidualVQ, params: PyTree) -> dict[str, LazyTensor]:
    """The part of the tokenizer's official state dict below 'quantize.', as above."""
    params = {"codec": params}
    slots = mapping.expand(vqvae.rows(codec.phi_sharing), params)
    extra = vqvae.buffers(len(codec.pyramid.patch_nums), codec.vocab_size)
    return {**mapping.tensors(params, slots), **extra}


def network_tensors(network: Network, params: PyTree) -> dict[str, LazyTensor]:
    """The official state dict of a transformer, buffers included; tensors are made when read.

    Args:
      network: its modules.
      params: {'transformer': ..., 'head': ...}, numpy arrays.

    Raises:
      ValueError: the official code has no such transformer.
    """
    transformer = network.transformer
    if not isinstance(transformer, VAR):
        raise ValueError(f"The official code has no {type(transformer).__name__}.")
    if transformer.conditioner or transformer.positions or transformer.cross_attention:
        raise ValueError("The official code knows class labels and learned positions only.")
    if transformer.mixer:
        raise ValueError("The official code knows no layer between attention and MLP.")
    if transformer.context != BlockCausal():
        raise ValueError(
            f"The official code has block-causal attention only, not {transformer.context}."
        )
    slots = mapping.expand(var.ROWS, params)
    extra = var.buffers(transformer.pyramid.patch_nums, transformer.width, transformer.depth)
    return {**mapping.tensors(params, slots), **extra}


def describe(group: Mapping[str, LazyTensor], what: str) -> list[str]:
    """What a dict of tensors is, by names and shapes alone: kind, size and configuration.

    Returns:
      One line each; none if there is neither an official tokenizer nor a transformer. Where the
      configuration cannot be told, the reason stands there instead.
    """
    lines = []
    for kind in LAYOUTS:
        for prefix, tensors in _find(group, kind).items():
            layout = layout_of(kind, tensors)
            learned = [
                tensor.size
                for name, tensor in tensors.items()
                if not any(re.fullmatch(pattern, name) for pattern in layout.buffers)
            ]
            under = f", under {prefix}" if prefix else ""
            lines += [f"kind: {kind}{under}", f"parameters: {sum(learned):,}"]
            try:
                shape = layout.infer(tensors, what=what)
                lines += [f"{k}: {v}" for k, v in dataclasses.asdict(shape).items()]
            except ValueError as error:
                lines.append(f"configuration: {error}")
    return lines
