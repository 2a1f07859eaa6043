"""Masked refinement: what a level drew with least confidence is drawn again, given the rest (HMAR).

HMAR, arXiv 2506.04421, section 3.3. Next-scale prediction draws the tokens of a level independently
of each other. Here a level is drawn so, the most confident tokens are kept, and the network's
masked branch draws the others once more, and again, in as many passes as the level is given.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from var_jax.codecs.base import Codec
from var_jax.codecs.own_level import own_input
from var_jax.decoding import base
from var_jax.decoding.guidance import Guidance, LinearGuidance, is_guided, weights_of
from var_jax.heads.categorical import CategoricalSampling
from var_jax.network import Network


@dataclasses.dataclass(frozen=True)
class MaskedRefinement:
    """Next-scale generation, each level of which is refined.

    Guidance is that of the first pass of a level; the masked branch is not guided.

    Attributes:
      guidance: weight of each level.
      sampling: the settings of the head, a categorical one, for all passes of a level.
      counts: for each level how many tokens each pass settles, such as (1, 3) of a level of four;
        of levels behind the last one given, the first pass settles all. All levels of one pass are
        `NextScale`. The default is the published one of 256 px.
      filtered_confidence: confidence is the probability of a token among those that top_k and top_p
        keep, as in the released code; False: among all.
    """

    guidance: Guidance = LinearGuidance(1.7)
    sampling: Any = CategoricalSampling(1000, 0.99)
    counts: tuple[tuple[int, ...], ...] = ((1,), (1, 3), (1, 1, 2, 5))
    filtered_confidence: bool = False

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
          ValueError: the counts do not fit the levels, or the network has no masked branch.
        """
        self._check(network)
        pyramid = network.transformer.pyramid
        paired = is_guided(weights_of(self.guidance, pyramid))
        state, partial = base.start(network, given, keys, paired, pyramid), []
        for k in range(pyramid.num_levels):
            hiddens, mix, state = base.conditions(network, params, state, self.guidance)
            settings = self.sampling.at(k, pyramid)
            target, code = base.sample(network, params, hiddens, mix, settings, state)
            passes = self.counts[k] if k < len(self.counts) else ()
            if len(passes) > 1:
                confidence = self._confidence(network, params, hiddens, mix, target, settings)
                target, code = self._refine(
                    network, params, codec, codec_params, state, passes, target, code, confidence
                )
            state = base.add(codec, codec_params, target, code, state)
            if keep_partial:
                partial.append(codec.apply({"params": codec_params}, state.carry, method="finish"))
        features = codec.apply({"params": codec_params}, state.carry, method="finish")
        return base.Generated(jnp.concatenate(state.targets, axis=1), features, tuple(partial))

    def _refine(
        self,
        network: Network,
        params: Any,
        codec: Codec,
        codec_params: Any,
        state: base.State,
        passes: tuple[int, ...],
        target: jax.Array,
        code: jax.Array,
        confidence: Float[jax.Array, "B n"],
    ) -> tuple[jax.Array, jax.Array]:
        """A level's draw after the passes that follow the first."""
        level, pyramid, branch = state.level, state.pyramid, params["masked"]
        settings = self.sampling.at(level, pyramid)
        given = base.unpaired(state).given
        masked = jnp.ones(confidence.shape, bool)
        fold = jax.vmap(jax.random.fold_in, (0, None))
        for i in range(1, len(passes)):
            masked = least_confident(confidence, masked, sum(passes[i:]))
            hidden = network.masked.hidden(
                branch,
                params["transformer"],
                state.inputs[level],
                own_input(codec, codec_params, level, code, pyramid),
                masked,
                given,
                pyramid=pyramid,
                levels=range(level, level + 1),
            )
            again = state.replace(keys=fold(state.keys, pyramid.num_levels + i))
            drawn = base.sample(network, branch, (hidden,), (1.0,), settings, again)
            target, code = (
                jnp.where(masked.reshape(*masked.shape, *[1] * (old.ndim - 2)), new, old)
                for new, old in zip(drawn, (target, code), strict=True)
            )
            confidence = self._confidence(network, branch, (hidden,), (1.0,), target, settings)
        return target, code

    def _confidence(
        self,
        network: Network,
        params: Any,
        hiddens: tuple[jax.Array, ...],
        weights: tuple[float, ...],
        target: jax.Array,
        settings: Any,
    ) -> Float[jax.Array, "B n"]:
        return network.head.apply(
            {"params": params["head"]},
            hiddens,
            weights,
            target,
            settings,
            self.filtered_confidence,
            method="log_prob",
        )

    def _check(self, network: Network) -> None:
        sizes = network.transformer.pyramid.sizes
        settled = [sum(passes) for passes in self.counts]
        if settled != list(sizes[: len(settled)]) or any(
            min(p, default=0) < 1 for p in self.counts
        ):
            raise ValueError(
                f"counts {self.counts} settles {settled} tokens, but the first levels have "
                f"{list(sizes[: len(settled)])}; give each level numbers of one or more that add "
                "up to its tokens."
            )
        if any(len(passes) > 1 for passes in self.counts[:1]):
            raise ValueError(
                f"counts {self.counts} gives level 0 several passes, but it reads no codes; give "
                "it one."
            )
        if any(len(passes) > 1 for passes in self.counts):
            if network.masked is None:
                raise ValueError(
                    "Masked refinement needs a network with model.masked_blocks, trained by the "
                    "objective 'masked'; take one, or give each level one pass."
                )
            if not hasattr(network.head, "log_prob"):
                raise ValueError(
                    f"Masked refinement ranks tokens by their probability, which "
                    f"{type(network.head).__name__} does not give; take the categorical head."
                )


def least_confident(
    confidence: Float[jax.Array, "B n"], among: Bool[jax.Array, "B n"], count: int
) -> Bool[jax.Array, "B n"]:
    """The `count` tokens of lowest confidence among some, the earlier ones of equal confidence."""
    order = jnp.argsort(jnp.where(among, confidence, jnp.inf), axis=1)
    rank = jnp.argsort(order, axis=1)
    return rank < count
