import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recipes import load

from var_jax import build
from var_jax.fields import Field
from var_jax.heads.diffusion import DiffusionHead, DiffusionSampling, ancestral
from var_jax.heads.diffusion_schedule import cosine_kept, schedule, spaced_times
from var_jax.heads.latents import constant_noise
from var_jax.parallel import sharding
from var_jax.plan.flops import program_flops
from var_jax.pyramid import ScalePyramid

PYRAMID = ScalePyramid.from_patch_nums((1, 2))
WIDTH, CHANNELS = 8, 3
HEAD = DiffusionHead(
    Field("latents", (CHANNELS,), "float32"), WIDTH, net_width=16, net_depth=2, repeats=2,
    evaluation_times=2,
)  # fmt: skip


@functools.cache
def params():
    """Parameters that differ from zero everywhere."""
    hidden = jnp.zeros((1, PYRAMID.length, WIDTH))
    shapes = jax.eval_shape(HEAD.init, jax.random.key(0), hidden)["params"]
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.normal(0, 0.2, x.shape).astype("f4"), sharding.unbox(shapes))


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def keys(batch, seed=0):
    return jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(seed)))(jnp.arange(batch))


HIDDEN, TARGET = normal(0, 2, PYRAMID.length, WIDTH), normal(1, 2, PYRAMID.length, CHANNELS)


@jax.jit
def loss(params, hidden, target, keys):
    return HEAD.apply({"params": params}, hidden, target, keys, PYRAMID, method="loss")


@functools.partial(jax.jit, static_argnames=("weights", "settings"))
def sample(hiddens, weights, keys, settings):
    variables = {"params": params()}
    return HEAD.apply(variables, hiddens, weights, keys, settings, method="sample")[0]


@pytest.mark.parametrize("spacing", ["even", "stride"])
def test_the_true_noise_leads_to_the_data(spacing):
    data = normal(0, 2, 4, CHANNELS)
    settings = DiffusionSampling(5, spacing=spacing).at(1, PYRAMID)
    kept = jnp.asarray(cosine_kept(), jnp.float32)

    def true(x, time):
        return (x - jnp.sqrt(kept[time]) * data) / jnp.sqrt(1 - kept[time]), jnp.zeros_like(x)

    noise = normal(1, 6, *data.shape)
    np.testing.assert_allclose(ancestral(true, lambda i: noise[i], settings), data, atol=1e-4)


def test_a_step_of_the_whole_schedule_is_in_one_of_fewer():
    whole, fewer = schedule(), schedule(spaced_times(10))
    np.testing.assert_array_equal(fewer.kept, whole.kept[fewer.times])
    np.testing.assert_allclose(np.cumprod(1 - fewer.betas), fewer.kept, rtol=1e-6)
    # What is known of x and of the latents adds up, whatever is between: x itself without noise.
    np.testing.assert_allclose(
        fewer.data_factor + fewer.latents_factor * np.sqrt(fewer.kept), np.sqrt(fewer.kept_before)
    )
    assert spaced_times(50, latest=950)[-1] == 950
    assert spaced_times(8, "stride") == tuple(range(0, 1000, 125))


def test_training_draws_by_the_example_and_evaluation_nothing():
    drawn, parts = loss(params(), HIDDEN, TARGET, keys(2))
    assert drawn.shape == (2, PYRAMID.length)
    np.testing.assert_allclose(parts["error"] + parts["bound"], drawn, rtol=1e-5)
    others = HIDDEN.at[0].set(0), TARGET.at[0].set(1)
    np.testing.assert_allclose(
        loss(params(), *others, keys(2, 1).at[1].set(keys(2)[1]))[0][1], drawn[1], rtol=1e-4
    )
    assert np.abs(loss(params(), HIDDEN, TARGET, keys(2, 1))[0] - drawn).max() > 1e-2
    fixed = loss(params(), HIDDEN, TARGET, None)[0]
    np.testing.assert_allclose(loss(params(), *others, None)[0][1], fixed[1], rtol=1e-4)
    # A token's own state, and no other's.
    changed = loss(params(), HIDDEN.at[:, 2].add(1.0), TARGET, None)[0]
    assert ((np.abs(changed - fixed) > 1e-6).all(0) == (np.arange(PYRAMID.length) == 2)).all()


def test_at_initialisation_the_error_is_that_of_no_noise():
    zeros = jax.tree.map(jnp.zeros_like, params())
    noise = jnp.stack([constant_noise(i, TARGET.shape[1:]) for i in range(2)])
    found = loss(zeros, HIDDEN, TARGET, None)[1]["error"]
    np.testing.assert_allclose(found[0], np.square(noise).mean((0, 2)), rtol=1e-4)


def test_a_sample_does_not_hang_on_its_batch_and_no_weights_are_no_guidance():
    settings = DiffusionSampling(3, spacing="stride", latest_time=900).at(1, PYRAMID)
    asked, null = normal(2, 3, 4, WIDTH), normal(3, 3, 4, WIDTH)
    whole = sample((asked, null), (2.0, -1.0), keys(3), settings)
    order = np.array([1, 0, 2])
    turned = sample((asked[order], null[order]), (2.0, -1.0), keys(3)[order], settings)
    np.testing.assert_allclose(turned, whole[order], rtol=1e-3, atol=1e-3)
    assert np.abs(whole[0] - whole[1]).max() > 1e-2
    plain = sample((asked,), (1.0,), keys(3), settings)
    np.testing.assert_allclose(
        sample((asked, null), (1.0, 0.0), keys(3), settings), plain, rtol=1e-4, atol=1e-4
    )
    assert np.abs(whole - plain).max() > 1e-2


def test_equal_ends_of_an_annealing_are_plain_sampling():
    plain = DiffusionSampling(6, 0.9)
    for annealing in ("linear", "cosine", "two_stage"):
        equal = DiffusionSampling(6, 0.9, last_num_steps=6, annealing=annealing)
        assert all(equal.at(k, PYRAMID) == plain.at(k, PYRAMID) for k in range(2))


def test_operations_are_those_of_the_program():
    traced = jax.jit(HEAD.apply).trace({"params": params()}, HIDDEN)
    assert 2 * HEAD.flops(PYRAMID.length) == pytest.approx(program_flops(traced.jaxpr), rel=1e-6)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="continuous"):
        HEAD.clone(target=Field("tokens", (), num_values=4))
    with pytest.raises(ValueError, match="repeats"):
        HEAD.clone(repeats=0)
    for changes, word in (
        ({"num_steps": 1}, "num_steps is 1"),
        ({"spacing": "odd"}, "'odd'"),
        ({"num_steps": 7, "spacing": "stride", "latest_time": 0}, "latest_time 0"),
        ({"num_steps": 300, "spacing": "stride"}, "stride"),
        ({"temperature": (1.0,)}, "temperature has 1"),
    ):
        with pytest.raises(ValueError, match=word):
            DiffusionSampling(**changes).at(0, PYRAMID)


def test_the_full_size_config_builds():
    config = load("family/diffusion", "d16")
    build.check_config(config)
    shapes = jax.eval_shape(build.network(config).init_params, jax.random.key(0))
    assert shapes["head"]["denoiser"]["out"]["kernel"].unbox().shape == (1280, 2, 16)
    assert build.decoder(config).sampling == DiffusionSampling()
