"""What is to be known of a published code to read its files."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
from jaxtyping import PyTree

from var_jax.convert.lazy_state import LazyTensor
from var_jax.convert.mapping import Slot

Tensors = Mapping[str, LazyTensor]


def abstract_params(module: Any) -> PyTree:
    """Shapes of a module's parameters, nested dicts."""
    return nn.unbox(jax.eval_shape(module.init_params, jax.random.key(0)))


def _always(tensors: Tensors) -> bool:
    return True


def _nothing(module: Any) -> dict[str, Any]:
    return {}


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
      constants: module -> those of its parameters that the code has not: they change nothing.
    """

    signature: tuple[str, ...]
    infer: Callable[..., Any]
    build: Callable[[Any, Tensors], Any]
    slots: Callable[[Any, Tensors], dict[str, Slot]]
    buffers: tuple[str, ...] = ()
    accepts: Callable[[Tensors], bool] = _always
    constants: Callable[[Any], dict[str, Any]] = _nothing

    def found_in(self, tensors: Tensors) -> bool:
        """Whether a dict of tensors is such a model."""
        return all(name in tensors for name in self.signature) and self.accepts(tensors)
