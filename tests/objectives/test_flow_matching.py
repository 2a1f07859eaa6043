"""What trains xAR and ACDiT: times of each entity, the held-out loss, and what it refuses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recipes import load
from small_network import filled

from var_jax import build
from var_jax.heads.latents import constant_noise
from var_jax.network import Network
from var_jax.objectives.flow_matching import FlowMatching


@functools.cache
def objective(cls=Network, **settings):
    config = load("family/xar", "smallest")
    made = build.network(config)
    network = cls(made.transformer, made.head)
    return FlowMatching(network, build.tokenizer(config), **settings)


@functools.cache
def params():
    return jax.tree.map(lambda x: x / 4, filled(objective().init_params, 0))


FROZEN = {"tokenizer": {"codec": {"moments": jnp.array([0.0, 1.0])}}}


def batch(count, source):
    rng = np.random.default_rng(0)
    moments = rng.normal(size=(count, *source.shape)).astype("f4")
    return {"moments": moments, "label": np.arange(count, dtype=np.int32)}


def losses(rows, keys, cls=Network, weights=None):
    made = objective(cls)
    read = {k: v[rows] for k, v in batch(4, made.tokenizer.codec.source).items()}
    run = jax.jit(lambda p, read, keys: made.per_token(p, FROZEN, read, keys)[0])
    return np.asarray(run(weights or params(), read, keys))


def test_every_entity_of_every_example_has_a_time_and_noise_of_its_own():
    seen = []

    class Watched(Network):
        def denoised(self, params, noisy, given, keys=None, *, times):
            jax.debug.callback(lambda t: seen.append(np.asarray(t)), times)
            return super().denoised(params, noisy, given, keys, times=times)

    keys, rows = jax.random.split(jax.random.key(0), 4), np.array([2, 1])
    found = losses(np.arange(4), keys, Watched)
    jax.effects_barrier()
    (times,) = seen
    assert times.shape == (4, 4) and len(np.unique(times)) == 16
    np.testing.assert_allclose(losses(rows, keys[rows]), found[rows], 1e-4)
    assert np.abs(losses(np.arange(4), jax.random.split(jax.random.key(1), 4)) - found).max() > 0.1


def test_the_context_of_acdit_is_clean_and_that_of_xar_noisy():
    moved = {}
    for name in ("xar", "acdit"):
        config = load(f"family/{name}", "smallest")
        made = FlowMatching(build.network(config), build.tokenizer(config))
        weights = jax.tree.map(lambda x: x / 4, filled(made.network.init_params, 0))
        read = batch(2, made.tokenizer.codec.source)
        data = made.likelihood.lesson(FROZEN, read).targets
        rng = np.random.default_rng(0)
        noise, times = rng.normal(size=data.shape).astype("f4"), rng.random((2, 4), "f4")
        error = jax.jit(functools.partial(made.error, weights, given=read["label"]))
        before, changed = error(data, times, noise), noise.copy()
        changed[:, 0] += 1  # The first token of four of the first cell.
        of_cells = np.abs(error(data, times, changed) - before).reshape(2, 4, 4).max((0, 2))
        moved[name] = (of_cells > 1e-5).tolist()
        later = data.at[:, 0].add(1)
        assert (np.abs(error(later, times, noise) - before).max(0) > 1e-5).all()
    assert moved == {"xar": [True] * 4, "acdit": [True, False, False, False]}


def test_times_are_logit_normal():
    parts = np.linspace(0.1, 0.9, 9).astype("f4")
    times = 1 / (1 + np.exp(-np.random.default_rng(0).normal(size=100_000)))
    np.testing.assert_allclose(objective().times_at(parts), np.quantile(times, parts), atol=5e-3)


def test_what_is_held_out_is_a_mean_over_fixed_times_and_noise():
    made = objective()
    read = batch(2, made.tokenizer.codec.source)
    rows = np.arange(2)
    found = losses(rows, None)
    order, expected = made.network.denoiser.order, 0
    data = made.likelihood.lesson(FROZEN, read).targets[:, order]
    error = jax.jit(functools.partial(made.error, params(), data, given=read["label"]))
    medians = np.asarray(made.times_at((np.arange(4) + 0.5) / 4))
    for i in range(4):
        # Each entity has each time once.
        times = jnp.tile(np.roll(medians, -i), (2, 1))
        noise = jnp.tile(constant_noise(i, data.shape[1:]), (2, 1, 1))
        expected = expected + np.asarray(error(times=times, noise=noise)) / 4
    np.testing.assert_allclose(found[:, order], expected, rtol=1e-4, atol=1e-5)


def test_at_initialisation_the_loss_is_that_of_no_velocity():
    made = objective(evaluation_times=1)
    head = jax.tree.map(jnp.zeros_like, params()["head"])
    read = batch(2, made.tokenizer.codec.source)
    found, _ = made.per_token({**params(), "head": head}, FROZEN, read)
    order = made.network.denoiser.order
    target = made.likelihood.lesson(FROZEN, read).targets[:, order]
    noise = constant_noise(0, target.shape[1:])
    np.testing.assert_allclose(found[:, order], np.square(noise - target).mean(-1), rtol=1e-5)


@pytest.mark.parametrize("settings", [dict(time_std=0.0), dict(evaluation_times=0)])
def test_numbers_that_do_not_fit_are_named(settings):
    with pytest.raises(ValueError, match="positive deviation, and 1 pass or more"):
        objective(**settings)


@pytest.mark.parametrize(
    "origin, head, message",
    [
        ("mar", None, "choose model.transformer 'xar' or 'acdit'"),
        ("xar", dict(kind="flow", net_width=32, net_depth=1), "choose model.head 'velocity'"),
    ],
)
def test_what_it_cannot_train_is_refused(origin, head, message):
    config = load(f"family/{origin}", "smallest")
    with config.unlocked():
        config.model.head = head or config.model.head
    with pytest.raises(ValueError, match=message):
        FlowMatching(build.network(config), build.tokenizer(config))
