import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from var_jax.tokenizer.autoencoder import Decoder, Encoder, GroupNorm, Upsample

# Random numbers take most of the compile time of initialisation and need no optimised code.
FAST_COMPILE = {"xla_backend_optimization_level": 0}


def test_group_norm_agrees_with_flax_where_the_mean_is_large():
    x = jnp.asarray(np.random.default_rng(0).normal(50, 2, (2, 3, 5, 8)), jnp.float32)
    ours = GroupNorm(4).apply({"params": {"scale": jnp.arange(8.0), "bias": jnp.ones(8)}}, x)
    theirs = nn.GroupNorm(4, epsilon=1e-6, use_fast_variance=False)
    theirs = theirs.apply({"params": {"scale": jnp.arange(8.0), "bias": jnp.ones(8)}}, x)
    np.testing.assert_allclose(ours, theirs, atol=2e-4)


def test_upsample_is_nearest_doubling_and_a_convolution():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 4, 5)), jnp.float32)
    variables = nn.unbox(
        jax.jit(Upsample().init, compiler_options=FAST_COMPILE)(jax.random.key(0), x)
    )
    doubled = jnp.repeat(jnp.repeat(x, 2, 1), 2, 2)
    conv = variables["params"]["conv"]
    expected = conv["bias"] + jax.lax.conv_general_dilated(
        doubled, conv["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_allclose(Upsample().apply(variables, x), expected, atol=1e-5)


@pytest.mark.parametrize("remat", [False, True])
def test_dropout_and_remat(remat):
    decoder = Decoder(1, 8, (1, 2), 1, attention=True, norm_groups=4, dropout=0.5, remat=remat)
    z = jnp.asarray(np.random.default_rng(0).normal(size=(1, 2, 2, 4)), jnp.float32)
    variables = nn.unbox(jax.jit(decoder.init, compiler_options=FAST_COMPILE)(jax.random.key(0), z))

    @jax.jit
    def loss(variables, key):
        return jnp.sum(decoder.apply(variables, z, True, rngs={"dropout": key}) ** 2)

    value, grads = jax.value_and_grad(loss)(variables, jax.random.key(0))
    assert value != loss(variables, jax.random.key(1))
    assert all(jnp.all(jnp.isfinite(g)) for g in jax.tree.leaves(grads))


def test_stride_follows_from_the_number_of_stages():
    for multipliers, side in [((1,), 16), ((1, 2), 8), ((1, 1, 2, 2), 2)]:
        encoder = Encoder(4, 8, multipliers, 1, norm_groups=4)
        images = jnp.zeros((1, 16, 16, 3))
        features, _ = jax.eval_shape(encoder.init_with_output, jax.random.key(0), images)
        assert features.shape == (1, side, side, 4)
