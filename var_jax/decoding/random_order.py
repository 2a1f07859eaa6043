"""Generation of one level in a random order, a few tokens at a time (MAR).

MAR, arXiv 2406.11838, section 3.3 and appendix B: nothing is known at first; each iteration draws
some of the tokens that are left, given all before, and more of them the more is known.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from var_jax.codecs.base import Codec
from var_jax.decoding import base
from var_jax.decoding.guidance import Guidance, LinearGuidance, is_guided
from var_jax.decoding.twins import of_pairs, pairs
from var_jax.heads.diffusion import DiffusionSampling
from var_jax.network import Network
from var_jax.pyramid import ScalePyramid


@dataclasses.dataclass(frozen=True)
class RandomOrder:
    """Draws the tokens of a `MAR`'s level, each once, in an order of each example's own.

    The shapes of an iteration must not hang on chance, but neither need all iterations have the
    same. They are cut into `num_stages` parts of about equal length; each is a loop whose body is
    compiled once, with room for the tokens that are known at its end and the most that one of its
    iterations draws. More stages compute less and compile longer; what is drawn is the same.

    Attributes:
      guidance: its levels are here the numbers of tokens drawn, 0 .. L: with `LinearGuidance` the
        weight grows with the share of the tokens that are drawn.
      sampling: the settings of the head; a tuple gives one value for each stage, and so does
        annealing.
      num_iterations: from 1, all tokens at once, to L, one after the other.
      num_stages: see above, at most num_iterations.
    """

    guidance: Guidance = LinearGuidance(2.0)
    sampling: Any = DiffusionSampling()
    num_iterations: int = 64
    num_stages: int = 4

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
          ValueError: the transformer is no `MAR`, or numbers of iterations and stages that do not
            fit it.
        """
        length = network.mar.pyramid.length
        if not 1 <= self.num_stages <= self.num_iterations <= length:
            raise ValueError(
                f"num_iterations is {self.num_iterations} and num_stages {self.num_stages}; give "
                f"from 1 iteration to {length}, one for each token, and from 1 stage to so many."
            )
        left = np.array([length, *masked_after(length, self.num_iterations)])
        weights = self.weights(length)
        order_keys, token_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
        order = self.draw_order(order_keys, length)
        drawn = jnp.zeros((len(keys), length, *codec.target.shape), codec.target.dtype)

        stages = ScalePyramid(((1, 1),) * self.num_stages)
        for k, part in enumerate(np.array_split(np.arange(self.num_iterations), self.num_stages)):
            paired = is_guided([weights[i] for i in part])
            asked = base.start(network, given, keys, paired).given
            iterate = _Iteration(
                network,
                params,
                asked,
                paired,
                order,
                rank=jnp.argsort(order, axis=1),
                keys=token_keys,
                settings=self.sampling.at(k, stages),
                max_known=int(length - left[part[-1]]),
                most=int((left[part] - left[part + 1]).max()),
            )
            rows = (left[part], left[part + 1], jnp.stack([weights[i] for i in part]))
            drawn, _ = jax.lax.scan(iterate, drawn, rows)
        carry, _ = codec.apply({"params": codec_params}, None, 0, drawn, method="advance")
        features = codec.apply({"params": codec_params}, carry, method="finish")
        return base.Generated(drawn, features, (features,) if keep_partial else ())

    def weights(self, length: int) -> list[float | jax.Array]:
        """t of each iteration; see `decoding.guidance`."""
        # Officially one token counts as masked to the end.
        drawn = [length - max(left, 1) for left in masked_after(length, self.num_iterations)]
        numbers = ScalePyramid(((1, 1),) * (length + 1))
        return [self.guidance.weight(number, numbers) for number in drawn]

    def draw_order(self, keys: jax.Array, length: int) -> Int[jax.Array, "B L"]:
        """Each example's order of its tokens, by its key; the last one is drawn first."""
        return jax.vmap(lambda key: jax.random.permutation(key, length))(keys)


@dataclasses.dataclass(frozen=True, eq=False)
class _Iteration:
    """The body of a stage's loop.

    Attributes:
      network, params: of the model.
      given, paired: see `State`.
      order: of the tokens; the last one is drawn first.
      rank: place of each token in it.
      keys: one PRNG key for each example [B].
      settings: of the head.
      max_known: room for known tokens.
      most: room for drawn tokens.
    """

    network: Network
    params: Any
    given: Any
    paired: bool
    order: Int[jax.Array, "B L"]
    rank: Int[jax.Array, "B L"]
    keys: jax.Array
    settings: Any
    max_known: int
    most: int

    def __call__(
        self, drawn: Float[jax.Array, "B L c"], row: tuple[jax.Array, jax.Array, jax.Array]
    ) -> tuple[Float[jax.Array, "B L c"], None]:
        """One iteration; row: tokens left before and after it, and the weight of guidance."""
        before, after, weight = row
        batch, length = self.order.shape
        masked = self.rank < before
        if self.paired:
            hidden = self._hidden(pairs(drawn, drawn), pairs(masked, masked))
            twins = (of_pairs(hidden, 0), of_pairs(hidden, 1))
            mix: tuple[Any, ...] = (1 + weight, -weight)
        else:
            twins, mix = (self._hidden(drawn, masked),), (1.0,)

        # Those of the order that are drawn now, and others where there is room for more.
        start = jnp.maximum(before - self.most, 0)
        places = jax.lax.dynamic_slice_in_dim(self.order, start, self.most, axis=1)
        number = start + jnp.arange(self.most)
        chosen = (number >= after) & (number < before)
        # Each token is an example of its own to the head, with a key of its own: its noise is the
        # same wherever it stands among those that are drawn with it.
        own_keys = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)))(self.keys, places)
        states = tuple(
            jnp.take_along_axis(x, places[..., None], 1).reshape(-1, 1, x.shape[-1]) for x in twins
        )
        new, _ = self.network.sample(self.params, states, mix, own_keys.reshape(-1), self.settings)
        new = new.reshape(batch, self.most, -1)
        # What is not chosen is put behind the end, and dropped.
        to = jnp.where(chosen, places, length)
        return jax.vmap(lambda x, i, y: x.at[i].set(y, mode="drop"))(drawn, to, new), None

    def _hidden(self, own: jax.Array, masked: jax.Array) -> jax.Array:
        return self.network.filled_in(
            self.params, own, self.given, masked=masked, max_known=self.max_known
        )


def masked_after(length: int, num_iterations: int) -> tuple[int, ...]:
    """Tokens that are masked after each iteration: L cos(pi s / 2 S) rounded down, but such that
    each of the S iterations, and the last one too, draws at least one."""
    left, found = length, []
    for s in range(1, num_iterations):
        share = math.cos(math.pi / 2 * s / num_iterations)
        left = max(1, min(left - 1, math.floor(length * share)))
        found.append(left)
    return (*found, 0)
