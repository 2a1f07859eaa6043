"""Attention to cached levels against attention to a copy of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from var_jax.context import KeySegment
from var_jax.kernels.block_attention import cached_attention, cached_tpu, pallas_tpu, reference
from var_jax.kernels.block_attention.layout import Layout

INTERPRET = pltpu.InterpretParams(detect_races=True, uninitialized_memory="nan")


def _operands(lengths, batch=2, heads=4, dim=64, blocks=3, dtype=jnp.float32):
    """q, k, v of the last level, and keys and values of the earlier ones in all blocks."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)  # noqa: E731
    q, k, v = (draw(batch, lengths[-1], heads, dim) for _ in range(3))
    earlier = [tuple(draw(blocks, batch, n, heads * dim) for _ in "kv") for n in lengths[:-1]]
    return q, k, v, earlier


def _expected(q, k, v, earlier, block, scale):
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: np.asarray(x, np.float64), (q, k, v, earlier))
        k, v = reference.with_cached(*wide[1:], block)
        whole = (KeySegment(q.shape[1], 0, k.shape[1]),)
        return np.asarray(reference.block_attention(wide[0], k, v, whole, scale=scale))


@pytest.mark.parametrize(
    "lengths, heads, dim, dtype",
    [
        ((1, 4, 9), 2, 64, jnp.float32),
        ((1, 4, 9, 16, 25, 36), 4, 64, jnp.bfloat16),
        ((30, 300), 1, 128, jnp.float32),
        # Heads that do not fill the lanes.
        ((1, 4, 9), 3, 64, jnp.float32),
        ((1, 4), 2, 24, jnp.float32),
    ],
    ids=str,
)
def test_kernel_agrees_with_float64(lengths, heads, dim, dtype):
    operands = _operands(lengths, heads=heads, dim=dim, dtype=dtype)
    run = jax.jit(
        lambda block, *args: pallas_tpu.cached_attention(
            *args,
            block,
            (KeySegment(lengths[-1], 0, sum(lengths)),),
            scale=0.1,
            interpret=INTERPRET,
        )
    )
    for block in (0, 2):
        want = _expected(*operands, jnp.int32(block), 0.1)
        got = np.asarray(run(jnp.int32(block), *operands), np.float64)
        tolerance = 1e-5 if dtype == jnp.float32 else 1e-2
        assert np.max(np.abs(got - want)) < tolerance * np.max(np.abs(want))


def test_programs_take_as_many_heads_as_fit():
    layout = Layout(64, 2, 30, False, jnp.dtype(jnp.bfloat16))
    levels = (1, 4, 9, 16, 25, 36, 64, 100, 169, 256)
    assert cached_tpu.choose_groups(layout, 256, levels, 128 * 2**20) == 15
    assert 0 < cached_tpu.choose_groups(layout, 256, levels, 16 * 2**20) < 15
    assert cached_tpu.choose_groups(layout, 4096, (1, 4096), 128 * 2**20) == 0


@pytest.mark.parametrize("implementation", [None, "xla"])
def test_levels_in_front_as_if_they_were_one_array(implementation):
    q, k, v, earlier = _operands((4, 9))
    # Not all queries see all keys.
    segments = (KeySegment(4, 0, 8), KeySegment(5, 2, 13))
    block = jnp.int32(1)
    got = cached_attention(
        q, k, v, earlier, block, segments, scale=0.1, implementation=implementation
    )
    keys, values = reference.with_cached(k, v, earlier, block)
    want = reference.block_attention(q, keys, values, segments, scale=0.1)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)
