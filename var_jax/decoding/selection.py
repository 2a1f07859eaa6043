"""Which candidates of a search go on: by what a reward says, or by what they have of their own.

One row of every array belongs to one example, and holds its candidates; the shapes are static, so
that a search is one compiled program (TTS-VAR, arXiv 2507.18537).
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

#: How a candidate's rewards, after levels that came before and now, become its potential.
POTENTIALS = ("value", "diff", "sum", "max", "topk")


def potential(
    rewards: Sequence[Float[jax.Array, "*B"]], kind: str = "value", k: int = 2
) -> Float[jax.Array, "*B"]:
    """What a candidate is worth, by its rewards in order; the last one is the newest.

    Args:
      rewards: after each level that was judged.
      kind: 'value', the newest; 'diff', what it gained since the one before; 'sum' of all; 'max' of
        all; 'topk', the sum of the k largest. All are the same for a single reward.
      k: of 'topk'.
    """
    if kind == "value" or len(rewards) == 1:
        return rewards[-1]
    if kind == "diff":
        return rewards[-1] - rewards[-2]
    stacked = jnp.stack(rewards)
    if kind == "sum":
        return stacked.sum(0)
    if kind == "max":
        return stacked.max(0)
    return jnp.sort(stacked, axis=0)[-min(k, len(rewards)) :].sum(0)


def resampled(
    potentials: Float[jax.Array, "B m"], scale: float, uniform: Float[jax.Array, "B n"]
) -> Int[jax.Array, "B n"]:
    """Draws n of m candidates, with replacement, with probabilities softmax(scale potential).

    Args:
      potentials: of the candidates.
      scale: 0 draws all alike; the larger, the more often the best.
      uniform: in [0, 1), one for each draw.
    """
    cumulated = jnp.cumsum(jax.nn.softmax(scale * potentials, axis=-1), axis=-1)
    found = (uniform[:, :, None] >= cumulated[:, None, :]).sum(-1)
    # The sum may round to a little less than 1.
    return jnp.minimum(found, potentials.shape[-1] - 1).astype(jnp.int32)


def best(potentials: Float[jax.Array, "B m"], count: int) -> Int[jax.Array, "B n"]:
    """The candidates of the largest potentials in their own order; of equal ones the first."""
    return jnp.sort(jax.lax.top_k(potentials, count)[1], axis=-1).astype(jnp.int32)


def pooled(features: Float[jax.Array, "*B p C"]) -> Float[jax.Array, "*B C"]:
    """The mean over the patches of each candidate."""
    return features.mean(-2)


def principal_scores(features: Float[jax.Array, "*B p C"]) -> Float[jax.Array, "*B p"]:
    """Each patch's score on its image's first principal axis; the largest one is positive.

    The public code leaves the sign to its solver.
    """
    centred = features - features.mean(-2, keepdims=True)
    # Of the patches' products: the scores are its first eigenvector, scaled.
    values, vectors = jnp.linalg.eigh(centred @ centred.swapaxes(-1, -2))
    scores = vectors[..., -1] * jnp.sqrt(jnp.maximum(values[..., -1:], 0.0))
    largest = jnp.abs(scores).argmax(-1, keepdims=True)
    return scores * jnp.sign(jnp.take_along_axis(scores, largest, axis=-1))


def representatives(
    points: Float[jax.Array, "m C"], count: int, rounds: int = 20
) -> Int[jax.Array, " n"]:
    """The members nearest to the centres of k-means, in their own order.

    The centres start at the first point, and then each at the one farthest from those before.

    Args:
      points: of the candidates of one example.
      count: of clusters.
      rounds: of k-means.
    """

    def distances(centres: jax.Array) -> jax.Array:
        return jnp.square(points[:, None] - centres[None]).sum(-1)

    chosen = [jnp.int32(0)]
    while len(chosen) < count:
        chosen.append(distances(points[jnp.stack(chosen)]).min(-1).argmax())

    def move(_: int, centres: jax.Array) -> jax.Array:
        member = jax.nn.one_hot(distances(centres).argmin(-1), count)
        sizes = member.sum(0)[:, None]
        return jnp.where(sizes > 0, member.T @ points / jnp.maximum(sizes, 1), centres)

    centres = jax.lax.fori_loop(0, rounds, move, points[jnp.stack(chosen)])
    apart = distances(centres)
    own = jax.nn.one_hot(apart.argmin(-1), count, dtype=bool)
    return jnp.sort(jnp.where(own, apart, jnp.inf).argmin(0)).astype(jnp.int32)
