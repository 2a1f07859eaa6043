"""Top-k and top-p filters without sorting."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def _ordered(x: jax.Array) -> jax.Array:
    """Maps float32 to int32 so that integer order is the floats' order."""
    bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.int32)
    return bits ^ ((bits >> 31) & jnp.int32(0x7FFFFFFF))


def _largest_where(accept, shape: tuple[int, ...]) -> jax.Array:
    """The largest int32 t with accept(t), for an `accept` that holds up to some t.

    One bit a round from the sign bit down: 32 passes over the data, exact, where a sort of
    4,096 entries takes 78 compare-exchange passes.
    """
    start = jnp.full(shape, jnp.iinfo(jnp.int32).min, jnp.int32)
    # The sign bit first: adding 2^31 to the minimum gives 0.
    start = jnp.where(accept(jnp.zeros(shape, jnp.int32)), 0, start)

    def refine(i, t):
        candidate = t + (jnp.int32(1) << (30 - i))
        return jnp.where(accept(candidate), candidate, t)

    return jax.lax.fori_loop(0, 31, refine, start)


def filter_logits(
    logits: jax.Array, top_k: int | jax.Array = 0, top_p: float | jax.Array = 0.0
) -> jax.Array:
    """Sets the logits of dropped tokens to -inf; top-k first, then top-p of what is left.

    Args:
      logits: float32 [..., V].
      top_k: keep the k most likely tokens, ties with the k-th included; 0 keeps all.
      top_p: drop the tokens whose ascending cumulative probability is at most 1 - top_p;
        0 or 1 keeps all. Scalar arrays are taken too, so that one program serves all settings.

    Returns:
      float32 [..., V].
    """
    vocab_size = logits.shape[-1]
    if isinstance(top_k, jax.Array):
        top_k = jnp.where((top_k > 0) & (top_k < vocab_size), top_k, vocab_size)
    if isinstance(top_k, jax.Array) or 0 < top_k < vocab_size:
        order = _ordered(logits)

        def enough_above(t):
            return (order >= t[..., None]).sum(-1) >= top_k

        threshold = _largest_where(enough_above, logits.shape[:-1])
        logits = jnp.where(order >= threshold[..., None], logits, -jnp.inf)
    if isinstance(top_p, jax.Array) or 0.0 < top_p < 1.0:
        order = _ordered(logits)
        probability = jax.nn.softmax(logits, axis=-1)
        best = order.max(-1)

        def droppable(t):
            tail = jnp.where(order <= t[..., None], probability, 0.0).sum(-1)
            return (tail <= 1 - top_p) & (t < best)

        threshold = _largest_where(droppable, logits.shape[:-1])
        kept = (order > threshold[..., None]) | (top_p <= 0.0) | (top_p >= 1.0)
        logits = jnp.where(kept, logits, -jnp.inf)
    return logits
