"""What drawing an image costs, read off the traced program: nothing is timed."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name

from var_jax.decoding.base import Decoder
from var_jax.network import Network
from var_jax.plan.flops import program_flops, times_computed
from var_jax.tokenizer.vqvae import VQVAE
from var_jax.transformer.cache import Cache

_PASS = "pass of a transformer"


@dataclasses.dataclass(frozen=True)
class DrawingCosts:
    """Of one image, guidance included.

    Attributes:
      passes: of a transformer, over any number of tokens; a guided one counts once.
      cache_bytes: the most keys and values, and other states, that one pass hands to the next.
      flops: of the matrix products, without those that decode to pixels.
    """

    passes: int
    cache_bytes: int
    flops: float


def drawing_costs(
    network: Network,
    params: Any,
    tokenizer: VQVAE,
    tokenizer_params: Any,
    decoder: Decoder,
    decoder_params: Any,
    given: Any,
) -> DrawingCosts:
    """Traces the drawing of one image.

    Args:
      network, params, tokenizer, tokenizer_params: of the model.
      decoder, decoder_params: how it is drawn, see `build.LoadedDecoder`.
      given: what is asked for, of one example.
    """
    held = [0]

    class Watched(Network):
        """Marks its passes, and notes what they are handed."""

        def hidden(self, params: Any, *args: Any, **kwargs: Any) -> Any:
            caches = [x for x in (*args, *kwargs.values()) if isinstance(x, Cache)]
            held.extend(_bytes(dataclasses.replace(x, modulation=None)) for x in caches)
            hidden, cache = super().hidden(params, *args, **kwargs)
            return checkpoint_name(hidden, _PASS), cache

        def filled_in(self, params: Any, *args: Any, **kwargs: Any) -> Any:
            return checkpoint_name(super().filled_in(params, *args, **kwargs), _PASS)

        def denoised(self, params: Any, *args: Any, **kwargs: Any) -> Any:
            held.append(_bytes(kwargs["cache"]))
            hidden, cache = super().denoised(params, *args, **kwargs)
            return checkpoint_name(hidden, _PASS), cache

    def watched(value: Any) -> Any:
        return Watched(value.transformer, value.head) if isinstance(value, Network) else value

    made: Any = decoder  # A protocol says nothing of fields.
    fields = {f.name: watched(getattr(made, f.name)) for f in dataclasses.fields(made)}
    made = dataclasses.replace(made, **fields)

    def draw(params, codec_params, own_params, given, keys):
        found = made(
            watched(network),
            params,
            tokenizer.codec,
            codec_params,
            given,
            keys,
            own_params=own_params,
        )
        return found.features

    traced = jax.make_jaxpr(draw)(
        params,
        tokenizer_params.get("codec", {}),
        decoder_params,
        given,
        jax.random.split(jax.random.key(0), 1),
    )
    return DrawingCosts(times_computed(traced, _PASS), max(held), program_flops(traced))


def _bytes(tree: Any) -> int:
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))
