"""Search while drawing: several candidates for each example, of which fewer and fewer go on.

TTS-VAR (arXiv 2507.18537) begins with many candidates, since coarse levels cost little. Where their
number falls, those that go on stand each for a cluster of what the candidates show, or are drawn by
a reward of it; at the end the best is taken. Best-of-n is the case of one number for all levels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from var_jax.codecs.base import Codec
from var_jax.decoding import base, selection
from var_jax.decoding.guidance import Guidance, LinearGuidance, is_guided, weights_of
from var_jax.decoding.rewards import Candidates, Reward
from var_jax.heads.categorical import CategoricalSampling
from var_jax.network import Network
from var_jax.pyramid import ScalePyramid
from var_jax.transformer.cache import CachePolicy


@dataclasses.dataclass(frozen=True)
class Search:
    """Candidates of one example share its key and differ by their place, of which the first draws
    what `NextScale` would.

    Attributes:
      candidates: of each example at each level, from level to level no more than before; one number
        is the same at all levels: best-of-n.
      reward: of what candidates show; the best is taken after the last level.
      cluster_levels: levels before which the number falls by clustering in place of the reward.
      cluster: of the features of a candidate, 'pca' (scores of the cells on the first principal
        axis) or 'pool' (mean over the cells). The paper clusters features of DINOv2, not of the
        codec.
      scale: candidates are drawn with probabilities softmax(scale potential), with replacement;
        None takes the best ones.
      potential: of `selection.POTENTIALS`, by the rewards before this level and where the number
        fell earlier; the public code only runs with 'value'.
      top: of the potential 'topk'.
      guidance: weight of each level.
      sampling: the head's settings, see `Head`.
      cache_policy: what the cache keeps; None is all that the context sees.
      pyramid: to draw; None is the transformer's own.
    """

    candidates: int | tuple[int, ...]
    reward: Reward | None = None
    cluster_levels: tuple[int, ...] = ()
    cluster: str = "pca"
    scale: float | None = 10.0
    potential: str = "value"
    top: int = 2
    guidance: Guidance = LinearGuidance(1.5)
    sampling: Any = CategoricalSampling()
    cache_policy: CachePolicy | None = None
    pyramid: ScalePyramid | None = None

    def __post_init__(self) -> None:
        for name, known in (("cluster", ("pca", "pool")), ("potential", selection.POTENTIALS)):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name} of the search is {getattr(self, name)!r}; choose one of "
                    f"{', '.join(known)}."
                )

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
          ValueError: the numbers of candidates do not suit the pyramid, or there is no reward.
        """
        pyramid = network.transformer.pyramid if self.pyramid is None else self.pyramid
        counts, batch = self.counts(pyramid), len(keys)
        slots = base.several(keys, counts[0], pyramid.num_levels).reshape(batch, -1)

        def repeated(count: int) -> Any:
            return jax.tree.map(lambda x: jnp.repeat(x, count, axis=0), given)

        def finish(state: base.State) -> jax.Array:
            return codec.apply({"params": codec_params}, state.carry, method="finish")

        def seen(state: base.State, likelihood: jax.Array, count: int) -> Candidates:
            features = finish(state)
            images = None if decode is None else decode(features)
            known = likelihood if network.head.has_likelihood else None
            return Candidates(repeated(count), features, images, known)

        paired = is_guided(weights_of(self.guidance, pyramid))
        state = base.start(network, repeated(counts[0]), slots.reshape(-1), paired, pyramid)
        likelihood, rewards, partial = jnp.zeros(slots.size), [], []
        for k, count in enumerate(counts):
            before = counts[max(k - 1, 0)]
            if count < before:
                numbers = pyramid.num_levels + counts[0] + k
                level_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, numbers)
                candidates = seen(state, likelihood, before)
                chosen = self._chosen(k, count, candidates, rewards, level_keys)
                rows = (chosen + before * jnp.arange(batch)[:, None]).reshape(-1)
                likelihood, rewards, partial = jax.tree.map(
                    lambda x, rows=rows: x[rows], (likelihood, rewards, partial)
                )
                # Copies of a candidate go on with keys of their own.
                state = state.reindex(rows).replace(keys=slots[:, :count].reshape(-1))
            hiddens, mix, state = base.conditions(
                network, params, state, self.guidance, self.cache_policy
            )
            settings = self.sampling.at(k, pyramid)
            target, code = base.sample(network, params, hiddens, mix, settings, state)
            if network.head.has_likelihood:
                shape = pyramid.shapes[k]
                likelihood -= base.surprise(network, params, hiddens[0], target, shape).sum(1)
            state = base.add(codec, codec_params, target, code, state)
            if keep_partial:
                partial.append(finish(state))
        made = base.Generated(jnp.concatenate(state.targets, 1), finish(state), tuple(partial))
        if counts[-1] == 1:
            return made
        scores = self._judged(seen(state, likelihood, counts[-1])).reshape(batch, -1)
        winners = scores.argmax(1) + counts[-1] * jnp.arange(batch)
        return jax.tree.map(lambda x: x[winners], made)

    def counts(self, pyramid: ScalePyramid) -> tuple[int, ...]:
        """The number of candidates at each level.

        Raises:
          ValueError: the numbers do not suit the pyramid, or ask for a reward that is not there.
        """
        given, count = self.candidates, pyramid.num_levels
        counts = given if isinstance(given, tuple) else (given,) * count
        falls = {k for k in range(1, len(counts)) if counts[k] < counts[k - 1]}
        if len(counts) != count or min(counts) < 1 or counts != tuple(sorted(counts)[::-1]):
            raise ValueError(
                f"candidates is {given}; give one number, or {count} that do not grow, one for "
                "each level, all of them 1 or more."
            )
        if extra := sorted(set(self.cluster_levels) - falls):
            raise ValueError(
                f"cluster_levels has {extra[0]}, where the number of candidates does not fall; it "
                f"falls before the levels {sorted(falls)}."
            )
        if self.reward is None and (counts[-1] > 1 or falls - set(self.cluster_levels)):
            raise ValueError(
                f"candidates is {given}, but there is nothing to choose them by; give "
                "config.sampling.reward, such as 'likelihood'."
            )
        return counts

    def _chosen(
        self,
        level: int,
        count: int,
        candidates: Candidates,
        rewards: list[jax.Array],
        keys: jax.Array,
    ) -> Int[jax.Array, "B n"]:
        """Which of each example's candidates go on; adds what they were judged to `rewards`."""
        batch, features = len(keys), candidates.features
        if level in self.cluster_levels:
            cells = features.reshape(batch, -1, features[0, ..., 0].size, features.shape[-1])
            described = selection.principal_scores if self.cluster == "pca" else selection.pooled
            return jax.vmap(lambda x: selection.representatives(x, count))(described(cells))
        rewards.append(self._judged(candidates))
        worth = selection.potential(rewards, self.potential, self.top).reshape(batch, -1)
        if self.scale is None:
            return selection.best(worth, count)
        uniform = jax.vmap(lambda key: jax.random.uniform(key, (count,)))(keys)
        return selection.resampled(worth, self.scale, uniform)

    def _judged(self, candidates: Candidates) -> Float[jax.Array, " B"]:
        assert self.reward is not None  # See `counts`.
        return self.reward(candidates)
