import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from var_jax.tokenizer.autoencoder import (
    Decoder,
    Encoder,
    Settings,
    Upsample,
    depth_to_space,
    space_to_depth,
)

# Random numbers take most of the compile time of initialisation and need no optimised code.
FAST_COMPILE = {"xla_backend_optimization_level": 0}


def test_upsample_is_nearest_doubling_and_a_convolution():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 4, 5)), jnp.float32)
    variables = nn.unbox(
        jax.jit(Upsample(Settings()).init, compiler_options=FAST_COMPILE)(jax.random.key(0), x)
    )
    doubled = jnp.repeat(jnp.repeat(x, 2, 1), 2, 2)
    conv = variables["params"]["conv"]
    expected = conv["bias"] + jax.lax.conv_general_dilated(
        doubled, conv["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_allclose(Upsample(Settings()).apply(variables, x), expected, atol=1e-5)


def test_dropout_and_remat():
    decoder = Decoder(1, 8, (1, 2), 1, attention=False, norm_groups=4, dropout=0.5)
    z = jnp.asarray(np.random.default_rng(0).normal(size=(3, 2, 2, 4)), jnp.float32)
    variables = nn.unbox(jax.jit(decoder.init, compiler_options=FAST_COMPILE)(jax.random.key(0), z))

    def value_and_grad(remat):
        def value(variables, keys):
            return jnp.sum(decoder.clone(remat=remat).apply(variables, z, keys) ** 2)

        return jax.jit(jax.value_and_grad(value))

    keys = jax.random.split(jax.random.key(0), 6)
    value, grads = value_and_grad(True)(variables, keys[:3])
    assert value != value_and_grad(True)(variables, keys[3:])[0]
    stored = value_and_grad(False)(variables, keys[:3])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3), (value, grads), stored
    )


def test_dropout_follows_each_examples_own_key():
    decoder = Decoder(1, 8, (1,), 1, attention=False, norm_groups=4, dropout=0.5)
    z = np.random.default_rng(0).normal(size=(1, 2, 2, 4)).astype(np.float32)
    z = jnp.tile(z, (3, 1, 1, 1))
    variables = nn.unbox(jax.jit(decoder.init, compiler_options=FAST_COMPILE)(jax.random.key(0), z))
    keys = jax.random.split(jax.random.key(1), 2)
    y = jax.jit(decoder.apply)(variables, z, keys[jnp.array([0, 1, 0])])
    assert np.abs(y[0] - y[1]).max() > 1e-3
    np.testing.assert_allclose(y[0], y[2], atol=1e-6)
    alone = jax.jit(decoder.apply)(variables, z[1:2], keys[1:])
    np.testing.assert_allclose(y[1:2], alone, atol=1e-6)


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
