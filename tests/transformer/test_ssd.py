import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from var_jax.transformer.ssd import chunked_ssd

BATCH, LENGTH, HEADS, HEAD_DIM, STATE = 2, 11, 3, 4, 5
run = jax.jit(chunked_ssd, static_argnames="chunk")


@functools.cache
def operands():
    rng = np.random.default_rng(0)
    return dict(
        x=rng.normal(size=(BATCH, LENGTH, HEADS, HEAD_DIM)),
        dt=rng.uniform(0, 1, (BATCH, LENGTH, HEADS)),
        rate=-rng.uniform(0.1, 3, HEADS),
        b=rng.normal(size=(BATCH, LENGTH, STATE)),
        c=rng.normal(size=(BATCH, LENGTH, STATE)),
        state=rng.normal(size=(BATCH, HEADS, HEAD_DIM, STATE)),
    )


def quadratic(x, dt, rate, b, c, state):
    """Every token reads every one up to itself, and the state: float64, O(n^2)."""
    total = np.cumsum(dt * rate, axis=1)
    seen = np.tril(np.ones((LENGTH, LENGTH)))[None, :, :, None]
    left = seen * np.exp(seen * (total[:, :, None] - total[:, None]))
    y = np.einsum("bijn,bis,bjs,bjn,bjnh->binh", left, c, b, dt, x)
    y += np.einsum("bin,bnhs,bis->binh", np.exp(total), state, c)
    last = np.einsum("bjn,bjn,bjnh,bjs->bnhs", left[:, -1], dt, x, b)
    return y, last + np.exp(total[:, -1])[..., None, None] * state


def in_float32():
    return {name: jnp.asarray(value, jnp.float32) for name, value in operands().items()}


@pytest.mark.parametrize("chunk", [1, 4, 11, 64])
def test_chunks_equal_the_quadratic_sum(chunk):
    found, expected = run(**in_float32(), chunk=chunk), quadratic(**operands())
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_a_state_handed_over_is_one_pass():
    given = in_float32()
    whole, last = run(**given, chunk=4)
    cut = {"x", "dt", "b", "c"}
    first = {name: value[:, :5] if name in cut else value for name, value in given.items()}
    rest = {name: value[:, 5:] if name in cut else value for name, value in given.items()}
    before, state = run(**first, chunk=4)
    after, state = run(**{**rest, "state": state}, chunk=4)
    np.testing.assert_allclose(np.concatenate([before, after], 1), whole, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(state, last, rtol=1e-5, atol=1e-5)


def test_gradients_are_those_of_one_chunk():
    """Also where a state is forgotten at once, whose logarithms would overflow."""

    def gradient(chunk):
        def loss(given):
            y, state = chunked_ssd(**given, chunk=chunk)
            return jnp.square(y).sum() + jnp.square(state).sum()

        given = in_float32()
        return jax.jit(jax.grad(loss))({**given, "rate": given["rate"].at[0].set(-2e3)})

    one, many = gradient(LENGTH), gradient(3)
    for name in one:
        assert np.isfinite(many[name]).all(), name
        scale = np.abs(one[name]).max()
        np.testing.assert_allclose(many[name], one[name], rtol=0, atol=1e-4 * scale, err_msg=name)
