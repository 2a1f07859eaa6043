"""Fine levels through some of the blocks (VARiant, arXiv 2511.16546).

The coarse levels decide what an image shows and run through all blocks. The fine ones, which hold
most of the tokens, run through evenly spaced blocks, and the cache of the others is let go. The
paper trains all depths together; a model that was trained as usual loses more.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from var_jax.codecs.base import Codec
from var_jax.decoding import base
from var_jax.decoding.guidance import Guidance, LinearGuidance
from var_jax.heads.categorical import CategoricalSampling
from var_jax.network import Network
from var_jax.transformer.cache import Run


@dataclasses.dataclass(frozen=True)
class ElasticDepth:
    """Levels 0 .. N - 1 through all blocks, the others through some.

    With all blocks, or N = K, it is `NextScale`.

    Attributes:
      num_blocks: of the fine levels, 2 or more: the first, the last, and others between them.
      num_whole: N, 1 or more.
      guidance: weight of each level.
      sampling: the head's settings, see `Head`.
    """

    num_blocks: int
    num_whole: int
    guidance: Guidance = LinearGuidance(1.5)
    sampling: Any = CategoricalSampling()

    def __call__(
        self,
        network: Network,
        params: Any,
        codec: Codec,
        codec_params: Any,
        given: Any,
        keys: jax.Array,
        *,
        own_params: Any = None,
        decode: Callable[[jax.Array], jax.Array] | None = None,
        keep_partial: bool = False,
    ) -> base.Generated:
        """See `Decoder`.

        Raises:
          ValueError: the model has fewer blocks, or the number of levels is out of range.
        """
        pyramid = network.transformer.pyramid
        if not 1 <= self.num_whole <= pyramid.num_levels:
            raise ValueError(
                f"num_whole is {self.num_whole}, but the pyramid has {pyramid.num_levels} levels; "
                "give a number from 1 to that."
            )
        return base.generate(
            {0: (network, params)},
            codec,
            codec_params,
            given,
            keys,
            pyramid,
            self.guidance,
            self.sampling,
            keep_partial=keep_partial,
            blocks={self.num_whole: spaced_blocks(self.num_blocks, network.transformer.depth)},
        )


def spaced_blocks(count: int, depth: int) -> Run:
    """floor(i (D - 1) / (d - 1)) for i in 0 .. d - 1: d of D blocks, the first and the last in.

    Raises:
      ValueError: there are not so many, or fewer than 2 are asked for.
    """
    if count == depth:
        return tuple(range(depth))
    if not 2 <= count < depth:
        raise ValueError(
            f"num_blocks is {count}, but the model has {depth} blocks; give a number from 2 to it."
        )
    return tuple(i * (depth - 1) // (count - 1) for i in range(count))
