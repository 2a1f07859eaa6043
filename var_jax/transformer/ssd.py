"""The state-space recurrence of Mamba-2, in chunks (SSD, arXiv 2405.21060, section 6)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Float


def chunked_ssd(
    x: Float[jax.Array, "B n N H"],
    dt: Float[jax.Array, "B n N"],
    rate: Float[jax.Array, " N"],
    b: Float[jax.Array, "B n S"],
    c: Float[jax.Array, "B n S"],
    state: Float[jax.Array, "B N H S"],
    chunk: int,
) -> tuple[Float[jax.Array, "B n N H"], Float[jax.Array, "B N H S"]]:
    """For each head: state = exp(dt * rate) * state + dt * x b^T; y = state c, token after token.

    A chunk's tokens read each other as in attention, and all before them through the state. So
    most of the work is matrix products, their operands in the type of x, their sums in float32.

    Args:
      x: what is written into the state.
      dt: step sizes, 0 or more, float32.
      rate: of the state's growth, negative, float32.
      b, c: where it is written to, and what is read; all heads share them.
      state: float32, before the first token.
      chunk: tokens of a chunk; the result does not depend on it.

    Returns:
      y float32, and the state after the last token.
    """
    batch, length, heads, head_dim = x.shape
    chunk = min(chunk, length)
    count = -(-length // chunk)
    causal = jnp.tril(jnp.ones((chunk, chunk), bool))

    def chunks(t: jax.Array) -> jax.Array:
        """[B, n, ...] -> [chunks, B, chunk, ...]. A step of size 0 fills up: it changes nothing."""
        t = jnp.pad(t, ((0, 0), (0, count * chunk - length), *((0, 0),) * (t.ndim - 2)))
        return t.reshape(batch, count, chunk, *t.shape[2:]).swapaxes(0, 1)

    def product(formula: str, *operands: jax.Array) -> jax.Array:
        operands = tuple(t.astype(x.dtype) for t in operands)
        return jnp.einsum(formula, *operands, preferred_element_type=jnp.float32)

    def step(state, part):
        x, dt, b, c = part
        written = x * dt[..., None]
        # [B, N, q]: log of what is left at token i of the state before the chunk.
        left = jnp.cumsum((dt * rate).swapaxes(1, 2), axis=-1)
        between = jnp.where(causal, left[..., :, None] - left[..., None, :], -jnp.inf)
        weights = jnp.exp(between) * product("bis,bjs->bij", c, b)[:, None]
        y = product("bnij,bjnh->binh", weights, written)
        y += product("bis,bnhs->binh", c, state) * jnp.exp(left).swapaxes(1, 2)[..., None]
        kept = jnp.exp(left[..., -1:] - left).swapaxes(1, 2)[..., None]
        state = state * jnp.exp(left[..., -1])[..., None, None]
        state += product("bjnh,bjs->bnhs", written * kept, b)
        return state, y

    state, y = jax.lax.scan(step, state, (chunks(x), chunks(dt), chunks(b), chunks(c)))
    y = y.swapaxes(0, 1).reshape(batch, count * chunk, heads, head_dim)
    return y[:, :length], state
