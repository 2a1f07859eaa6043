"""Next-scale generation: one pass for each level, coarse to fine (VAR, arXiv 2404.02905)."""

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
from var_jax.pyramid import ScalePyramid
from var_jax.transformer.cache import CachePolicy


@dataclasses.dataclass(frozen=True)
class NextScale:
    """The plain decoder; its defaults are those of the official FID evaluation.

    Attributes:
      guidance: weight of each level.
      sampling: the head's settings, see `Head`.
      cache_policy: what the cache keeps; None is all that the context sees.
      pyramid: to draw; None is the transformer's own. Another one where positions and codec serve
        it.
    """

    guidance: Guidance = LinearGuidance(1.5)
    sampling: Any = CategoricalSampling()
    cache_policy: CachePolicy | None = None
    pyramid: ScalePyramid | None = None

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
        """See `Decoder`."""
        pyramid = network.transformer.pyramid if self.pyramid is None else self.pyramid
        return base.generate(
            {0: (network, params)},
            codec,
            codec_params,
            given,
            keys,
            pyramid,
            self.guidance,
            self.sampling,
            self.cache_policy,
            keep_partial,
        )
