"""The transformer of HMAR (NVlabs/HMAR): its next-scale stage.

The tokenizer is VAR's. A published file holds both stages, which share the first blocks and all
embeddings; what only the masked stage reads is left out.
"""

from __future__ import annotations

import re
from typing import Any

from var_jax.context import OwnScale
from var_jax.convert import mapping, var
from var_jax.convert.layouts import Layout, Tensors, abstract_params, make_network
from var_jax.network import Network

_OF_MASKED_STAGE = (r"mask_blocks\..*", r"mask_head(_nm)?\..*", r"mask_embed\..*")
#: Names there that hold nothing to learn of this stage.
_BUFFERS = (
    r"lvl_1L",
    r"attn_bias_for_masking",
    r"(base|ns)_blocks\.\d+\.attn\.zero_k_bias",
    *_OF_MASKED_STAGE,
)
_RENAMED = {"head": "ns_head", "head_nm": "ns_head_nm"}


def _num_shared(tensors: Tensors) -> int:
    """Blocks that both stages read."""
    numbers = [int(m[1]) for name in tensors if (m := re.match(r"base_blocks\.(\d+)\.", name))]
    return max(numbers, default=-1) + 1


def name_there(name: str, num_shared: int) -> str:
    """The name in HMAR's files of what VAR's call `name`.

    Args:
      name: of VAR's transformer, see `var.ROWS`.
      num_shared: blocks of both stages.
    """
    if name == "word_embed.bias":
        return "word_embed_bias"
    kind, _, rest = name.partition(".")
    if kind == "blocks":
        number, _, rest = rest.partition(".")
        shared = int(number) < num_shared
        place = int(number) - (0 if shared else num_shared)
        return f"{'base' if shared else 'ns'}_blocks.{place}.{rest}"
    return f"{_RENAMED.get(kind, kind)}{name[len(kind) :]}"


def _as_var(tensors: Tensors) -> dict[str, Any]:
    """The tensors of this stage by VAR's names."""
    shared, found = _num_shared(tensors), {}
    for name, tensor in tensors.items():
        if any(re.fullmatch(pattern, name) for pattern in _OF_MASKED_STAGE):
            continue
        kind, _, rest = name.partition(".")
        if kind in ("base_blocks", "ns_blocks"):
            number, _, rest = rest.partition(".")
            place = int(number) + (shared if kind == "ns_blocks" else 0)
            name = f"blocks.{place}.{rest}"
        elif kind in _RENAMED.values():
            name = name.removeprefix("ns_")
        found["word_embed.bias" if name == "word_embed_bias" else name] = tensor
    return found


def _infer(tensors: Tensors, *given: Any, **named: Any) -> var.TransformerShape:
    return var.infer(_as_var(tensors), *given, **named)


def _build(shape: var.TransformerShape, tensors: Tensors) -> Network:
    return make_network(shape, context=OwnScale())


def _slots(network: Network, tensors: Tensors) -> dict[str, mapping.Slot]:
    shared = _num_shared(tensors)
    return mapping.expand(var.ROWS, abstract_params(network), lambda name: name_there(name, shared))


TRANSFORMER = Layout(
    ("pos_1LC", "word_embed.weight", "ns_head.weight"), _infer, _build, _slots, _BUFFERS
)
