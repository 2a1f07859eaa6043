"""What is to be known of a published code to read its files."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
from jaxtyping import PyTree

from var_jax.codecs.base import Codec
from var_jax.convert import var, vqvae
from var_jax.convert.lazy_state import LazyTensor
from var_jax.convert.mapping import Slot
from var_jax.heads.categorical import CategoricalHead
from var_jax.network import Network
from var_jax.pyramid import ScalePyramid
from var_jax.tokenizer.vqvae import VQVAE
from var_jax.transformer.var import VAR

Tensors = Mapping[str, LazyTensor]


def abstract_params(module: Any) -> PyTree:
    """Shapes of a module's parameters, nested dicts."""
    return nn.unbox(jax.eval_shape(module.init_params, jax.random.key(0)))


def make_network(shape: var.TransformerShape, **parts: Any) -> Network:
    """The modules that a transformer's file describes.

    Args:
      shape: read off the file.
      **parts: fields of `VAR` in which the code differs from VAR's.
    """
    transformer = VAR(
        ScalePyramid.from_patch_nums(shape.patch_nums),
        shape.num_classes,
        shape.code_dim,
        shape.depth,
        shape.width,
        shape.num_heads,
        mlp_ratio=shape.mlp_ratio,
        qk_norm=shape.qk_norm,
        shared_adaln=shape.shared_adaln,
        **parts,
    )
    return Network(transformer, CategoricalHead(shape.vocab_size, shape.width))


def make_tokenizer(shape: vqvae.TokenizerShape, codec: Codec, **settings: Any) -> VQVAE:
    """The autoencoder that a tokenizer's file describes, around a codec.

    Args:
      shape: read off the file.
      codec: of the code.
      **settings: fields of `VQVAE` in which the code differs from VAR's.
    """
    return VQVAE(
        codec,
        image_channels=shape.image_channels,
        channels=shape.channels,
        multipliers=shape.multipliers,
        num_res_blocks=shape.num_res_blocks,
        attention=shape.attention,
        decoder_attention=shape.decoder_attention,
        **settings,
    )


def _always(tensors: Tensors) -> bool:
    return True


def _nothing(module: Any) -> dict[str, Any]:
    return {}


def _as_they_are(tensors: Tensors) -> Tensors:
    return tensors


@dataclasses.dataclass(frozen=True)
class Layout:
    """How the files of one code name the tensors of a tokenizer or of a transformer.

    Attributes:
      signature: names that such a dict of tensors has.
      infer: (tensors, ..., what) -> the configuration, read off names and shapes: of a tokenizer
        after patch_nums (`vqvae.infer`), of a transformer after patch_nums and num_heads
        (`var.infer`). Raises ValueError, in which `what` names the file.
      build: (configuration, tensors) -> the module: a VQVAE, or a Network.
      slots: (module, tensors) -> the place of each name.
      buffers: regular expressions of names that are not read.
      accepts: whether a dict with the signature is one.
      constants: module -> those of its parameters that the file has not: they change nothing, or
        the code has them as numbers.
      view: the tensors of a file -> those that `slots` and `buffers` name, where a parameter here
        is not one tensor there.
    """

    signature: tuple[str, ...]
    infer: Callable[..., Any]
    build: Callable[[Any, Tensors], Any]
    slots: Callable[[Any, Tensors], dict[str, Slot]]
    buffers: tuple[str, ...] = ()
    accepts: Callable[[Tensors], bool] = _always
    constants: Callable[[Any], dict[str, Any]] = _nothing
    view: Callable[[Tensors], Tensors] = _as_they_are

    def found_in(self, tensors: Tensors) -> bool:
        """Whether a dict of tensors is such a model."""
        return all(name in tensors for name in self.signature) and self.accepts(tensors)
