"""Collaborative decoding (CoDe): a large model draws the coarse levels, a small one the fine ones.

The coarse levels decide what an image shows and cost next to nothing; the fine levels hold most of
the tokens and ask for little. The small model, the refiner, takes over midway: it reads all levels
before in one pass, which fills a cache of its own, and goes on as plain next-scale generation does.
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
from var_jax.transformer.cache import CachePolicy


@dataclasses.dataclass(frozen=True)
class Collaborative:
    """Levels 0 .. N - 1 from the model, N .. K - 1 from the refiner.

    N = K is `NextScale` by the model, N = 0 by the refiner.

    Attributes:
      refiner: of the same tokenizer and classes; its parameters are own_params['refiner'].
      num_drafted: N.
      guidance: weight of each level, by its place among all levels.
      sampling: the heads' settings, see `Head`; both heads are of one kind.
      cache_policy: what the caches keep; None is all that the context sees.
    """

    refiner: Network
    num_drafted: int
    guidance: Guidance = LinearGuidance(1.5)
    sampling: Any = CategoricalSampling()
    cache_policy: CachePolicy | None = None

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
          ValueError: the refiner has other levels or classes, or N is not in 0..K.
        """
        self._check(network)
        models = {0: (network, params), self.num_drafted: (self.refiner, own_params["refiner"])}
        return base.generate(
            models,
            codec,
            codec_params,
            given,
            keys,
            network.transformer.pyramid,
            self.guidance,
            self.sampling,
            self.cache_policy,
            keep_partial,
        )

    def _check(self, network: Network) -> None:
        model, refiner = network.transformer, self.refiner.transformer
        if not 0 <= self.num_drafted <= model.pyramid.num_levels:
            raise ValueError(
                f"num_drafted is {self.num_drafted}, but the pyramid has "
                f"{model.pyramid.num_levels} levels; give a number from 0 to that."
            )
        for name in ("pyramid", "num_classes"):
            ours, theirs = getattr(model, name), getattr(refiner, name)
            if ours != theirs:
                raise ValueError(
                    f"The refiner has the {name} {theirs}, the model {ours}; take one that was "
                    "trained for the same."
                )
