"""Training a tokenizer whose codec has a posterior: what it draws, what it measures."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from var_jax.codecs.kl_latent import KLLatent
from var_jax.objectives.vqgan import VQGAN
from var_jax.pyramid import ScalePyramid
from var_jax.tokenizer.vqvae import VQVAE

TOKENIZER = VQVAE(
    KLLatent(ScalePyramid.from_patch_nums((1, 2)), 3),
    image_channels=1,
    channels=4,
    multipliers=(1, 1),
    num_res_blocks=1,
    attention=False,
    norm_groups=2,
)
OBJECTIVE = VQGAN(TOKENIZER, vq_weight=1e-3)
IMAGES = np.random.default_rng(0).uniform(-1, 1, (6, 4, 4, 1)).astype(np.float32)


@functools.cache
def params():
    shapes = jax.eval_shape(OBJECTIVE.init_params, jax.random.key(0))
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape).astype("f4"), nn.unbox(shapes))


@jax.jit
def run(params, images, keys):
    def loss(params):
        return OBJECTIVE.loss(params, {}, (), {"image": images}, keys, jnp.int32(0))

    (value, aux), gradient = jax.value_and_grad(loss, has_aux=True)(params)
    return value, aux.carry, gradient["tokenizer"]


def keys(seed=0):
    return jax.random.split(jax.random.key(seed), len(IMAGES))


def test_the_encoder_gives_moments_and_the_decoder_gets_latents():
    tokenizer = params()["tokenizer"]
    assert tokenizer["quant_conv"]["kernel"].shape[-1] == 6
    assert tokenizer["post_quant_conv"]["kernel"].shape[-2:] == (3, 3)
    made = jax.eval_shape(
        functools.partial(TOKENIZER.apply, method="reconstruct"), {"params": tokenizer}, IMAGES
    )
    assert made.shape == IMAGES.shape


def test_training_draws_from_the_posterior_by_the_example():
    drawn, carry, gradient = run(params(), IMAGES, keys())
    other = run(params(), IMAGES, keys(1))[0]
    assert abs(drawn - other) > 1e-4
    # Those of an example do not hang on the others.
    images, others = IMAGES.copy(), keys(1).at[2].set(keys()[2])
    images[3:] = 0.5
    row = run(params(), images, others)[1]["measured"]["moments"][2]
    np.testing.assert_allclose(row, carry["measured"]["moments"][2], rtol=1e-4)
    assert not gradient["codec"]["moments"].any()
    assert np.abs(gradient["quant_conv"]["kernel"][..., 3:]).max() > 0


def test_what_is_measured_is_averaged_over_steps():
    state, ema, seen = params(), params(), []
    for step in range(3):
        carry = run(params(), IMAGES, keys(step))[1]
        seen.append(carry["measured"]["moments"].mean(0))
        state, ema, _ = OBJECTIVE.after_update(state, ema, (), carry, None, jnp.int32(step))
    found = state["tokenizer"]["codec"]["moments"]
    np.testing.assert_allclose(found, np.mean(seen, 0), rtol=1e-5)
    np.testing.assert_array_equal(found, ema["tokenizer"]["codec"]["moments"])
    state, *_ = OBJECTIVE.after_update(state, None, (), carry, None, jnp.int32(10**4))
    np.testing.assert_allclose(
        state["tokenizer"]["codec"]["moments"], found + 0.01 * (seen[-1] - found), rtol=1e-5
    )
