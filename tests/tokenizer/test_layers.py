import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from var_jax.tokenizer.layers import Dropout, GroupNorm


def test_group_norm_agrees_with_flax_where_the_mean_is_large():
    x = jnp.asarray(np.random.default_rng(0).normal(50, 2, (2, 3, 5, 8)), jnp.float32)
    ours = GroupNorm(4).apply({"params": {"scale": jnp.arange(8.0), "bias": jnp.ones(8)}}, x)
    theirs = nn.GroupNorm(4, epsilon=1e-6, use_fast_variance=False)
    theirs = theirs.apply({"params": {"scale": jnp.arange(8.0), "bias": jnp.ones(8)}}, x)
    np.testing.assert_allclose(ours, theirs, atol=2e-4)


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
