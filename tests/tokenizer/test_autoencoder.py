import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from var_jax.tokenizer.autoencoder import (
    Decoder,
    Encoder,
    GroupNorm,
    Upsample,
    depth_to_space,
    space_to_depth,
)

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


def test_dropout_and_remat():
    decoder = Decoder(1, 8, (1,), 1, attention=False, norm_groups=4, dropout=0.5, remat=True)
    z = jnp.asarray(np.random.default_rng(0).normal(size=(1, 2, 2, 4)), jnp.float32)
    variables = nn.unbox(jax.jit(decoder.init, compiler_options=FAST_COMPILE)(jax.random.key(0), z))

    @jax.jit
    @jax.value_and_grad
    def value_and_grad(variables, key):
        return jnp.sum(decoder.apply(variables, z, True, rngs={"dropout": key}) ** 2)

    value, grads = value_and_grad(variables, jax.random.key(0))
    assert value != value_and_grad(variables, jax.random.key(1))[0]
    assert all(jnp.all(jnp.isfinite(g)) for g in jax.tree.leaves(grads))


def test_patches_become_channels_and_return():
    x = jnp.arange(2 * 4 * 8 * 3.0).reshape(2, 4, 8, 3)
    patches = space_to_depth(x, 2)
    assert patches.shape == (2, 2, 4, 12)
    np.testing.assert_array_equal(patches[1, 0, 1].reshape(2, 2, 3), x[1, :2, 2:4])
    np.testing.assert_array_equal(depth_to_space(patches, 2), x)


def test_stride_follows_from_the_number_of_stages():
    for multipliers, side in [((1,), 16), ((1, 2), 8), ((1, 1, 2, 2), 2)]:
        encoder = Encoder(4, 8, multipliers, 1, norm_groups=4)
        images = jnp.zeros((1, 16, 16, 3))
        features, _ = jax.eval_shape(encoder.init_with_output, jax.random.key(0), images)
        assert features.shape == (1, side, side, 4)
