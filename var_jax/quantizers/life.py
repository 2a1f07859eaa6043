"""How a codebook lives while it is trained: made by k-means, counted, its dead codes replaced."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Float, Int

from var_jax.pyramid import ScalePyramid
from var_jax.quantizers.nearest import nearest_codes

# k-means holds a matrix of distances [vectors, codes] of at most this many floats.
_KMEANS_DISTANCES = 2**27


@struct.dataclass
class CodeStats:
    """How often each level uses each code.

    Attributes:
      usage: float32 [K, V], moving average of the number of hits a step.
      updates: int32 scalar, steps in the average; it starts again when the codebook does.
      made: bool scalar, the warm-up is over: k-means has made the codebook.
    """

    usage: jax.Array
    updates: jax.Array
    made: jax.Array


def count_codes(tokens: jax.Array, pyramid, vocab_size: int) -> jax.Array:
    """Tokens int32 [B, L] -> hits float32 [K, V]."""
    bins = tokens + vocab_size * jnp.asarray(pyramid.level_ids)
    counts = jnp.zeros((pyramid.num_levels * vocab_size,), jnp.int32).at[bins.reshape(-1)].add(1)
    return counts.reshape(pyramid.num_levels, vocab_size).astype(jnp.float32)


def spread_sample(key: jax.Array, vectors: jax.Array, count: int) -> jax.Array:
    """Random rows of [N, C], spread over all of them and distinct if N >= count."""
    total = vectors.shape[0]
    if total < count:
        return vectors[jax.random.randint(key, (count,), 0, total)]
    # One row from each of `count` equal spans, which begin anywhere.
    start_key, row_key = jax.random.split(key)
    start = jax.random.randint(start_key, (), 0, total)
    row = jax.random.randint(row_key, (count,), 0, total // count)
    return vectors[(start + jnp.arange(count) * (total // count) + row) % total]


def kmeans_init(
    key: jax.Array,
    vectors: jax.Array,
    num_codes: int,
    iterations: int = 10,
    normalize: bool = False,
) -> jax.Array:
    """A codebook by Lloyd's algorithm; a code that loses all its vectors takes a far one.

    Args:
      key: chooses the first codes among the vectors.
      vectors: float32 [..., C]; of very many a random part is used.
      num_codes: V.
      iterations: of Lloyd's algorithm.
      normalize: vectors belong to the code of the nearest direction.

    Returns:
      float32 [V, C].
    """
    vectors = vectors.reshape(-1, vectors.shape[-1])
    sample_key, start_key = jax.random.split(key)
    limit = min(64 * num_codes, _KMEANS_DISTANCES // num_codes)
    if vectors.shape[0] > limit:
        vectors = spread_sample(sample_key, vectors, limit)

    def improve(_, codes):
        nearest = nearest_codes(vectors, codes, normalize)
        sizes = jax.ops.segment_sum(jnp.ones(vectors.shape[:1]), nearest, num_codes)
        sums = jax.ops.segment_sum(vectors, nearest, num_codes)
        distance = jnp.sum(jnp.square(vectors - codes[nearest]), -1)
        _, far = jax.lax.top_k(distance, min(num_codes, vectors.shape[0]))
        empty = sizes == 0
        rank = jnp.minimum(jnp.cumsum(empty) - 1, far.shape[0] - 1)
        means = sums / jnp.maximum(sizes, 1)[:, None]
        return jnp.where(empty[:, None], vectors[far[rank]], means)

    return jax.lax.fori_loop(0, iterations, improve, spread_sample(start_key, vectors, num_codes))


@dataclasses.dataclass(frozen=True)
class CodebookLife:
    """What happens to a codebook beside its gradient.

    For `warmup_steps` the tokenizer is a plain autoencoder; then k-means on the vectors of the
    batch makes the codebook; until step `restart_until`, every `restart_every` steps, codes that
    no level uses are replaced by vectors of the batch. New codes enter the moving average as they
    are. All of it is a function of the state, so a resumed run repeats it, and what was due in an
    update that was skipped is done in the next.

    Attributes:
      warmup_steps: steps as a plain autoencoder, followed by k-means; 0 for neither.
      kmeans_iterations: of Lloyd's algorithm.
      restart_every: steps between restarts of dead codes; 0 for none.
      restart_until: step of the last restart.
      usage_decay: of the moving average of code usage.
      usage_margin: a level uses a code if the code's share of the level's tokens is at least
        this fraction of 1 / V.
      collapse_threshold: a level is reported as collapsed if it uses a smaller share of the
        codebook than this.
    """

    warmup_steps: int = 0
    kmeans_iterations: int = 10
    restart_every: int = 0
    restart_until: int = 0
    usage_decay: float = 0.99
    usage_margin: float = 0.08
    collapse_threshold: float = 0.02

    def init_stats(self, pyramid: ScalePyramid, num_codes: int) -> CodeStats:
        """No code has been used yet."""
        usage = jnp.zeros((pyramid.num_levels, num_codes), jnp.float32)
        return CodeStats(usage, jnp.zeros((), jnp.int32), jnp.array(not self.warmup_steps))

    def metrics(
        self, stats: CodeStats, tokens: Int[jax.Array, "B L"], pyramid: ScalePyramid
    ) -> dict[str, jax.Array]:
        """Use of the codebook, with a batch that is not counted yet, by name."""
        counted = self._count(stats, count_codes(tokens, pyramid, stats.usage.shape[-1]))
        return self._usage_metrics(counted, ~stats.made)

    def after_update(
        self,
        codebook: Float[jax.Array, "V C"],
        average: Float[jax.Array, "V C"] | None,
        stats: CodeStats,
        tokens: Int[jax.Array, "B L"],
        vectors: Float[jax.Array, "B L C"],
        pyramid: ScalePyramid,
        key: jax.Array,
        step: jax.Array,
        normalize: bool = False,
    ) -> tuple[jax.Array, jax.Array | None, CodeStats]:
        """Counts codes, makes the codebook when the warm-up ends, restarts dead codes.

        Args:
          codebook: after the optimizer's update.
          average: its moving average, or None.
          stats: before this batch.
          tokens: the codes that were chosen.
          vectors: what they were chosen for.
          pyramid: of the tokens.
          key: one PRNG key for the step.
          step: int32 scalar, the number of updates before this one.
          normalize: codes are chosen by direction.

        Returns:
          codebook, average, stats.
        """
        num_codes = codebook.shape[0]
        new = jnp.zeros((num_codes,), bool)
        kmeans_key, restart_key = jax.random.split(key)
        stats = self._count(stats, count_codes(tokens, pyramid, num_codes))
        if self.warmup_steps:
            due = ~stats.made & (step + 1 >= self.warmup_steps)
            codebook = jax.lax.cond(
                due,
                lambda: kmeans_init(
                    kmeans_key, vectors, num_codes, self.kmeans_iterations, normalize
                ),
                lambda: codebook,
            )
            new |= due
            # What was chosen before there was a codebook does not count.
            usage, updates = (
                jnp.where(stats.made, x, jnp.zeros_like(x)) for x in (stats.usage, stats.updates)
            )
            stats = CodeStats(usage, updates, stats.made | due)
        if self.restart_every:
            due = (stats.updates > 0) & (stats.updates % self.restart_every == 0)
            dead = due & (step < self.restart_until) & self._dead(stats)
            codebook = jax.lax.cond(
                dead.any(),
                lambda: self._restart(restart_key, codebook, dead, vectors),
                lambda: codebook,
            )
            new |= dead
        if average is not None:
            average = jnp.where(new[:, None], codebook, average)
        return codebook, average, stats

    def _count(self, stats: CodeStats, counts: jax.Array) -> CodeStats:
        """Adds a batch to the average: a plain mean at first, then exponential."""
        decay = jnp.minimum(self.usage_decay, stats.updates / (stats.updates + 1))
        usage = decay * stats.usage + (1 - decay) * counts
        return stats.replace(usage=usage, updates=stats.updates + 1)

    def _shares(self, stats: CodeStats) -> jax.Array:
        """float32 [K, V]: each code's share of its level's tokens."""
        return stats.usage / jnp.maximum(stats.usage.sum(-1, keepdims=True), 1e-6)

    def _usage_metrics(self, stats: CodeStats, warm: jax.Array) -> dict[str, jax.Array]:
        shares = self._shares(stats)
        vocab_size = shares.shape[-1]
        used = shares >= self.usage_margin / vocab_size
        usage = used.mean(-1, dtype=jnp.float32)
        # A level of one token has seen few codes after a few steps; that is no collapse.
        steps = jnp.minimum(stats.updates, 1 / max(1 - self.usage_decay, 1e-6))
        enough = steps * stats.usage.sum(-1) >= 4 * vocab_size
        collapsed = (usage < self.collapse_threshold) & enough & ~warm
        entropy = -jnp.sum(jnp.where(shares > 0, shares * jnp.log(shares), 0.0), -1)
        return {
            "usage": used.any(0).mean(dtype=jnp.float32),
            "usage_level": usage,
            "perplexity_level": jnp.exp(entropy),
            "collapsed_level": collapsed.astype(jnp.float32),
        }

    def _dead(self, stats: CodeStats) -> jax.Array:
        """bool [V]: the codes that no level uses."""
        return (self._shares(stats) < self.usage_margin / stats.usage.shape[-1]).all(0)

    def _restart(self, key, codebook, dead, residuals) -> jax.Array:
        """Replaces the dead codes by residual vectors of the batch."""
        vectors = residuals.reshape(-1, residuals.shape[-1])
        return jnp.where(dead[:, None], spread_sample(key, vectors, codebook.shape[0]), codebook)
