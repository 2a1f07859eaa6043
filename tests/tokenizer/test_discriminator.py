import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from var_jax.tokenizer.discriminator import PatchDiscriminator, hinge_loss, spectral_norm

# Random numbers take most of the compile time of initialisation and need no optimised code.
FAST_COMPILE = {"xla_backend_optimization_level": 0}


def init(discriminator, shape):
    return nn.unbox(
        jax.jit(discriminator.init, compiler_options=FAST_COMPILE)(
            jax.random.key(0), jnp.zeros(shape)
        )
    )


@pytest.mark.parametrize("norm", ["group", "instance", "none"])
def test_judges_each_image_by_itself(norm):
    discriminator = PatchDiscriminator(8, 2, norm, spectral=norm == "none")
    x = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (3, 24, 24, 3)), jnp.float32)
    params = init(discriminator, x.shape)
    apply = jax.jit(discriminator.apply)
    logits = apply(params, x)
    assert logits.shape == (3, 4, 4) and logits.dtype == jnp.float32
    changed = apply(params, x.at[1].set(0.0))
    np.testing.assert_allclose(logits[jnp.array([0, 2])], changed[jnp.array([0, 2])], atol=1e-6)


def test_a_patch_of_70_pixels():
    # The classic three-layer network: the middle logit sees 70 of 96 pixels and no more.
    discriminator = PatchDiscriminator(2, 3, norm="none")
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 96, 96, 1)), jnp.float32)
    params = init(discriminator, x.shape)
    grad = jax.jit(jax.grad(lambda x: discriminator.apply(params, x)[0, 5, 5]))(x)
    assert np.flatnonzero(np.abs(grad).sum((0, 2, 3))).size == 70


def test_spectral_norm_is_the_largest_singular_value():
    kernel = jnp.asarray(np.random.default_rng(0).normal(size=(4, 4, 3, 10)), jnp.float32)
    exact = np.linalg.svd(np.asarray(kernel).reshape(48, 10), compute_uv=False)[0]
    np.testing.assert_allclose(spectral_norm(kernel, 200), exact, rtol=1e-4)
    assert 0.8 * exact < spectral_norm(kernel) <= exact * 1.0001


def test_hinge_loss():
    assert hinge_loss(jnp.array([2.0, 1.0]), jnp.array([-1.0, -3.0])) == 0
    assert hinge_loss(jnp.array([0.0]), jnp.array([0.5])) == 0.5 * (1 + 1.5)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="too small"):
        jax.eval_shape(PatchDiscriminator().init, jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
    with pytest.raises(ValueError, match="Unknown norm 'batch'"):
        jax.eval_shape(
            PatchDiscriminator(norm="batch").init, jax.random.key(0), jnp.zeros((1, 64, 64, 3))
        )
