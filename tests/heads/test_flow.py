import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from recipes import load

from var_jax import build
from var_jax.fields import Field
from var_jax.heads.flow import FlowHead, FlowSampling
from var_jax.heads.latents import constant_noise
from var_jax.heads.ode import noise_of_steps, solve
from var_jax.parallel import sharding
from var_jax.plan.flops import program_flops
from var_jax.pyramid import ScalePyramid
from var_jax.transformer.rotary import angles_by_level, rotate_pairs

PYRAMID = ScalePyramid.from_patch_nums((1, 2, 3))
WIDTH, CHANNELS = 8, 3


def make_head(**changes):
    settings = dict(pyramid=PYRAMID, width=WIDTH, net_width=16, net_depth=2, net_heads=2)
    target = Field("latents", (CHANNELS,), "float32")
    return FlowHead(target=target, **{**settings, **changes})


@functools.cache
def params_of(cross=False):
    """Parameters that differ from zero everywhere."""
    hidden = jnp.zeros((1, PYRAMID.length, WIDTH))
    shapes = jax.eval_shape(make_head(cross=cross).init, jax.random.key(0), hidden)["params"]
    rng = np.random.default_rng(0)
    fill = functools.partial(rng.normal, 0, 0.3)
    return jax.tree.map(lambda x: fill(x.shape).astype("f4"), sharding.unbox(shapes))


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def keys(batch, seed=0):
    return jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(seed)))(jnp.arange(batch))


@functools.partial(jax.jit, static_argnames="cross")
def loss(hidden, target, keys, cross=False):
    head, params = make_head(cross=cross), params_of(cross)
    return head.apply({"params": params}, hidden, target, keys, PYRAMID, method="loss")[0]


@functools.partial(jax.jit, static_argnames=("weights", "settings"))
def sample(hiddens, weights, keys, settings):
    params = {"params": params_of()}
    return make_head().apply(params, hiddens, weights, keys, settings, method="sample")[0]


@pytest.mark.parametrize("solver", ["euler", "heun"])
@pytest.mark.parametrize("uniform", [True, False])
def test_the_true_velocity_leads_to_the_data(uniform, solver):
    data, noise = normal(0, 2, 4, CHANNELS), normal(1, 2, 4, CHANNELS)

    def true(x, time, hiddens, weights):
        return (x - data) / time

    for steps in (2, 7):
        settings = FlowSampling(steps, uniform=uniform, solver=solver).at(1, PYRAMID)
        found = solve(true, noise, (data,), (1.0,), settings)
        np.testing.assert_allclose(found, data, atol=1e-5)


def test_heun_is_of_second_order():
    # dx/dt = x, so x(0) = x(1) / e.
    def error(solver, steps):
        settings = FlowSampling(steps, uniform=True, solver=solver).at(0, PYRAMID)
        found = solve(lambda x, *_: x, jnp.ones(1), (None,), (1.0,), settings)
        return abs(float(found[0]) - np.exp(-1))

    assert 1.8 < error("euler", 8) / error("euler", 16) < 2.3
    assert error("heun", 8) / error("heun", 16) > 3.2


def test_stochastic_steps_lead_to_the_distribution_of_the_data():
    mean, std, count = 1.5, 0.6, 4000

    def true(x, time, *_):
        """Of normal data: the mean of noise - data where both make x."""
        clean = 1 - time
        slope = (time - clean * std**2) / (clean**2 * std**2 + time**2)
        return slope * (x - clean * mean) - mean

    settings = FlowSampling(100, solver="euler_maruyama").at(0, PYRAMID)
    assert settings.times[[0, -2, -1]].tolist() == [1, 0.04, 0] and len(settings.times) == 101

    @jax.jit
    def run(keys, others):
        noise = jax.vmap(jax.random.normal)(keys)[:, None]
        drawn = noise_of_steps(others, (1,))
        return noise, solve(true, noise, (None,), (1.0,), settings, drawn)

    noise, found = run(keys(count, 0), keys(count, 1))
    assert abs(found.mean() - mean) < 0.04 and abs(found.std() / std - 1) < 0.05
    # It forgets what it began with, of which the ordinary equation keeps all.
    assert abs(np.corrcoef(noise[:, 0], found[:, 0])[0, 1]) < 0.5
    np.testing.assert_array_equal(run(keys(count)[5:7], keys(count, 1)[5:7])[1], found[5:7])


def test_equal_ends_of_an_annealing_are_plain_sampling():
    plain = [FlowSampling(6).at(k, PYRAMID) for k in range(3)]
    for annealing in ("linear", "cosine", "two_stage"):
        equal = FlowSampling(6, last_num_steps=6, annealing=annealing)
        assert [equal.at(k, PYRAMID) for k in range(3)] == plain
        falling = FlowSampling(6, last_num_steps=3, annealing=annealing)
        steps = [falling.at(k, PYRAMID).num_steps for k in range(3)]
        assert steps == [6, 6 if annealing == "two_stage" else 4, 3]


def test_logit_normal_times_have_their_quantiles():
    head = make_head(time_distribution="logit_normal", time_mean=1.0, time_std=0.5)
    parts = np.linspace(0.1, 0.9, 9).astype(np.float32)
    times = 1 / (1 + np.exp(-1 - 0.5 * np.random.default_rng(0).normal(size=100_000)))
    np.testing.assert_allclose(head.times_at(parts), np.quantile(times, parts), atol=5e-3)
    np.testing.assert_array_equal(make_head().times_at(parts), parts)
    assert head.times_at(0.0) == 0


def test_times_lead_from_noise_to_data():
    for uniform in (True, False):
        times = FlowSampling(25, uniform=uniform).at(0, PYRAMID).times
        assert times[0] == 1 and times[-1] == 0 and (np.diff(times) < 0).all()
        assert len(times) == (26 if uniform else 25)


def test_weights_that_do_not_guide_are_no_guidance():
    settings = FlowSampling(6).at(1, PYRAMID)
    asked, null = normal(0, 2, 4, WIDTH), normal(1, 2, 4, WIDTH)
    plain = sample((asked,), (1.0,), keys(2), settings)
    np.testing.assert_allclose(sample((asked, null), (1.0, 0.0), keys(2), settings), plain, 1e-5)
    # Two equal states, mixed in any way.
    np.testing.assert_allclose(
        sample((asked, asked), (2.5, -1.5), keys(2), settings), plain, rtol=1e-3, atol=1e-4
    )
    assert np.abs(sample((asked, null), (2.5, -1.5), keys(2), settings) - plain).max() > 1e-2


def test_guidance_counts_inside_its_interval_only():
    hiddens = normal(0, 2, 4, WIDTH), normal(1, 2, 4, WIDTH)
    never = FlowSampling(6, guidance_interval=-1.0).at(1, PYRAMID)
    late = FlowSampling(6, 0.5, guidance_from=0.1).at(1, PYRAMID)
    weights = (2.0, -1.0)
    plain = sample(hiddens[:1], (1.0,), keys(2), never)
    np.testing.assert_array_equal(sample(hiddens, weights, keys(2), never), plain)
    seen = []

    def velocity(x, time, hiddens, weights):
        jax.debug.callback(lambda t: seen.append((float(t), len(weights))), time)
        return x

    solve(velocity, normal(2, 1, 4, CHANNELS), hiddens, weights, late)
    jax.effects_barrier()
    assert len(seen) == 6
    assert all((0.1 <= time <= 0.5) == (count == 2) for time, count in seen)
    assert len({count for _, count in seen}) == 2 and min(seen)[0] < 0.1


@pytest.mark.parametrize("solver", ["euler", "euler_maruyama"])
def test_a_sample_does_not_hang_on_its_batch(solver):
    settings = FlowSampling(4, solver=solver).at(2, PYRAMID)
    hidden = normal(0, 3, 9, WIDTH)
    whole = sample((hidden,), (1.0,), keys(3), settings)
    alone = sample((hidden[1:2],), (1.0,), keys(3)[1:2], settings)
    np.testing.assert_allclose(alone[0], whole[1], rtol=1e-3, atol=1e-3)
    assert np.abs(whole[0] - whole[1]).max() > 1e-2


@pytest.mark.parametrize("cross", [False, True])
def test_a_token_sees_its_level_and_no_other(cross):
    hidden, target = normal(0, 2, PYRAMID.length, WIDTH), normal(1, 2, PYRAMID.length, CHANNELS)
    whole = loss(hidden, target, keys(2), cross)
    changed = loss(hidden.at[:, 2].add(1.0), target, keys(2), cross)
    part = np.abs(changed - whole).max(0) > 1e-6
    # Without cross-attention too, a state is read through the noisy tokens' attention.
    assert part[PYRAMID.level(1)].all()
    assert not part[PYRAMID.level(0)].any() and not part[PYRAMID.level(2)].any()


def test_training_draws_by_the_example_and_evaluation_nothing():
    hidden, target = normal(0, 2, PYRAMID.length, WIDTH), normal(1, 2, PYRAMID.length, CHANNELS)
    drawn = loss(hidden, target, keys(2))
    np.testing.assert_allclose(loss(hidden[1:], target[1:], keys(2)[1:])[0], drawn[1], rtol=1e-4)
    assert np.abs(loss(hidden, target, keys(2, 1)) - drawn).max() > 1e-2
    fixed = loss(hidden, target, None)
    np.testing.assert_allclose(loss(hidden[1:], target[1:], None)[0], fixed[1], rtol=1e-4)
    noise = constant_noise(0, (PYRAMID.length, CHANNELS))
    np.testing.assert_array_equal(constant_noise(0, (5, CHANNELS)), noise[:5])
    assert np.abs(constant_noise(1, noise.shape) - noise).min() > 0


def test_at_initialisation_the_loss_is_that_of_no_velocity():
    hidden, target = normal(0, 2, PYRAMID.length, WIDTH), normal(1, 2, PYRAMID.length, CHANNELS)
    head = make_head(evaluation_times=1)

    @jax.jit
    def initial(key):
        params = head.init(key, hidden)
        return head.apply(params, hidden, target, None, PYRAMID, method="loss")[0]

    noise = constant_noise(0, target.shape[1:])
    np.testing.assert_allclose(
        initial(jax.random.key(0)), np.square(noise - target).mean(-1), rtol=1e-4
    )


def test_training_lowers_the_loss_and_samples_come_near_the_data():
    head, count = make_head(), 8
    hidden = normal(0, 2, PYRAMID.length, WIDTH)
    target = jnp.sign(normal(1, 2, PYRAMID.length, CHANNELS))
    optimizer = optax.adam(1e-2)

    def value(params, keys):
        return head.apply(
            params,
            jnp.tile(hidden, (count, 1, 1)),
            jnp.tile(target, (count, 1, 1)),
            keys,
            PYRAMID,
            method="loss",
        )[0].mean()

    @jax.jit
    def train():
        params = sharding.unbox(head.init(jax.random.key(0), hidden))

        def step(carry, i):
            params, state = carry
            found, gradient = jax.value_and_grad(value)(params, keys(2 * count, i))
            updates, state = optimizer.update(gradient, state)
            return (optax.apply_updates(params, updates), state), found

        carry, losses = jax.lax.scan(step, (params, optimizer.init(params)), jnp.arange(300))
        level = PYRAMID.level(2)
        settings = FlowSampling(8).at(2, PYRAMID)
        args = ((hidden[:, level],), (1.0,), keys(2), settings)
        return losses, head.apply(carry[0], *args, method="sample")[0]

    losses, drawn = train()
    assert losses[-20:].mean() < 0.5 * losses[:5].mean()
    assert np.square(drawn - target[:, PYRAMID.level(2)]).mean() < 0.5


def test_rotary_positions_are_relative_and_keep_lengths():
    angles = angles_by_level(ScalePyramid(((4, 4),)), 8)
    q, k = (jnp.tile(normal(seed, 1, 1, 1, 8), (1, 16, 1, 1)) for seed in (0, 1))
    turned = rotate_pairs(q, angles)
    np.testing.assert_allclose(np.square(turned).sum(-1), np.square(q).sum(-1), rtol=1e-5)
    dots = np.einsum("bqnh,bknh->qk", turned, rotate_pairs(k, angles)).reshape(4, 4, 4, 4)
    np.testing.assert_allclose(dots[0, 0, 1, 2], dots[2, 1, 3, 3], rtol=1e-4)
    assert abs(dots[0, 0, 1, 2] - dots[0, 0, 2, 1]) > 1e-3


@pytest.mark.parametrize("cross", [False, True])
def test_operations_are_those_of_the_program(cross):
    # One level: implementations of the attention may compute what they then mask.
    head = make_head(cross=cross, pyramid=ScalePyramid(((3, 4),)))
    hidden = jnp.zeros((1, 12, WIDTH))
    traced = jax.jit(head.apply).trace({"params": params_of(cross)}, hidden)
    # The product that exchanges the channels of queries and keys is not the model's: in each of
    # two blocks, for 12 tokens of width 16 whose heads have 8 channels.
    exchanges = 2 * (1 + cross) * 2 * (2 * 12 * 16 * 8)
    assert head.flops(12) + exchanges == pytest.approx(program_flops(traced.jaxpr), rel=1e-6)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="continuous"):
        make_head().clone(target=Field("tokens", (), num_values=4))
    with pytest.raises(ValueError, match="not divisible"):
        jax.eval_shape(make_head(net_heads=3).init, jax.random.key(0), jnp.zeros((1, 14, WIDTH)))
    with pytest.raises(ValueError, match="num_steps of level 1"):
        FlowSampling((4, 1, 4)).at(1, PYRAMID)
    with pytest.raises(ValueError, match="'rk4'"):
        FlowSampling(solver="rk4").at(1, PYRAMID)
    with pytest.raises(ValueError, match="'beta'"):
        make_head(time_distribution="beta")
    for changes in ({"annealing": "linear"}, {"last_num_steps": 4}, {"annealing": "steep"}):
        with pytest.raises(ValueError, match="annealing"):
            FlowSampling(6, **changes).at(1, PYRAMID)
    with pytest.raises(ValueError, match="num_steps has 2"):
        FlowSampling((4, 4)).at(1, PYRAMID)


def test_the_full_size_config_builds():
    config = load("family/flowar", "d16")
    build.check_config(config)
    network, tokenizer = build.network(config), build.tokenizer(config)
    params = jax.eval_shape(network.init_params, jax.random.key(0))
    assert params["head"]["velocity"]["out"]["kernel"].unbox().shape == (1024, 16)
    assert tokenizer.codec.source.shape == (16, 16, 32)
    build.vqgan(config)
    assert build.decoder(config).sampling == FlowSampling(25, 0.9)
