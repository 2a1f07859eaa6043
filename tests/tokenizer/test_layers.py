import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from var_jax.tokenizer.layers import Dropout, GroupNorm


def test_group_norm_agrees_with_flax_where_the_mean_is_large():
    x = jnp.asarray(np.random.default_rng(0).normal(50, 2, (2, 3, 5, 8)), jnp.float32)
    ours = GroupNorm(4).apply({"params": {"scale": jnp.arange(8.0), "bias": jnp.ones(8)}}, x)
    theirs = nn.GroupNorm(4, epsilon=1e-6, use_fast_variance=False)
    theirs = theirs.apply({"params": {"scale": jnp.arange(8.0), "bias": jnp.ones(8)}}, x)
    np.testing.assert_allclose(ours, theirs, atol=2e-4)


@pytest.mark.parametrize("channels", [64, 160])
def test_group_norm_does_not_hang_on_the_batch(channels):
    x = np.random.default_rng(0).normal(size=(8, 8, 8, channels)).astype(np.float32)
    norm = GroupNorm(32)
    params = {"scale": jnp.arange(channels, dtype=jnp.float32), "bias": jnp.ones(channels)}
    apply = jax.jit(lambda x: norm.apply({"params": params}, x))
    alone = apply(x[:1])[0]
    for batch in (2, 3, 8):
        np.testing.assert_array_equal(apply(x[:batch])[0], alone)


def test_dropout_keeps_the_mean_and_differs_from_place_to_place():
    class Two(nn.Module):
        @nn.compact
        def __call__(self, x, keys):
            return Dropout(0.25, name="a")(x, keys), Dropout(0.25, name="b")(x, keys)

    a, b = Two().apply({}, jnp.ones((2, 100, 100)), jax.random.split(jax.random.key(0), 2))
    for y in (a, b):
        assert set(np.unique(y)) == {0, np.float32(1 / 0.75)}
        np.testing.assert_allclose(y.mean((1, 2)), 1, atol=0.02)
    # Independent masks agree in 0.75 * 0.75 + 0.25 * 0.25 of the entries.
    np.testing.assert_allclose((a == b).mean(), 0.625, atol=0.02)
