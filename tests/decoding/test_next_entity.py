"""Generation entity after entity: what the true velocity leads to, and what each pass is given."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recipes import load
from small_network import filled

from var_jax import build
from var_jax.codecs.latent import Latent
from var_jax.decoding.guidance import ConstantGuidance, LinearGuidance, PerLevelGuidance
from var_jax.decoding.next_entity import NextEntity
from var_jax.decoding.next_scale import NextScale
from var_jax.heads.linear_velocity import LinearVelocity
from var_jax.heads.ode import FlowSampling
from var_jax.network import Network
from var_jax.pyramid import ScalePyramid
from var_jax.transformer.xar import XAR

ODE = FlowSampling(4, 1.0, uniform=True)
SDE = FlowSampling(4, 1.0, solver="euler_maruyama")
FINE_SDE = dataclasses.replace(SDE, num_steps=400)
CUTS = [((4,), 2), ((4,), 1), ((1, 2, 4), 1)]


def network(patch_nums=(4,), cells=2, cls=Network):
    pyramid = ScalePyramid.from_patch_nums(patch_nums)
    transformer = XAR(pyramid, 5, 2, 1, 16, 2, cells=cells)
    codec = Latent(pyramid, 2)
    return cls(transformer, LinearVelocity(codec.target, 16)), codec


@functools.cache
def params(patch_nums=(4,), cells=2):
    found = filled(network(patch_nums, cells)[0].init_params, 0)
    return jax.tree.map(lambda x: x / 2, found)


def drawn(made, decoder, weights=None, batch=2):
    net, codec = made
    keys, labels = jax.vmap(jax.random.key)(jnp.arange(batch)), jnp.arange(batch)
    run = jax.jit(lambda p: decoder(net, p, codec, {}, labels, keys, keep_partial=True))
    return jax.tree.map(np.asarray, run(weights))


def data_of(codec, batch):
    """Latents whose levels are those of one feature map."""
    shape = (batch, *codec.pyramid.grid, codec.code_dim)
    features = np.random.default_rng(0).normal(size=shape).astype("f4")
    return features, np.asarray(codec.apply({}, features, method="encode"))


@pytest.mark.parametrize("patch_nums, cells", CUTS)
@pytest.mark.parametrize("sampling, tolerance", [(ODE, 1e-4), (FINE_SDE, 0.2)])
def test_the_true_velocity_leads_to_the_data(patch_nums, cells, sampling, tolerance):
    """The last stochastic step leaves some of the noise of its time, 0.04."""

    class Oracle(Network):
        def denoised(self, params, noisy, given, *, times, levels, cache):
            if times is None:
                return noisy, cache
            part = data[:, self.denoiser.order][:, self.denoiser.entities.tokens(levels)]
            part = np.repeat(part, len(noisy) // 2, 0)
            return (noisy - part) / jnp.maximum(times[..., None], 1e-3), cache

        def sample(self, params, hiddens, weights, keys, settings):
            return sum(w * h for w, h in zip(weights, hiddens, strict=True)), None

    made = network(patch_nums, cells, Oracle)
    features, data = data_of(made[1], 2)
    found = drawn(made, NextEntity(LinearGuidance(1.5), sampling))
    np.testing.assert_allclose(found.targets, data, atol=tolerance)
    np.testing.assert_allclose(found.features, features, atol=tolerance)
    assert len(found.partial) == len(patch_nums)


def test_the_context_is_read_clean_and_kept_for_all_steps():
    calls = []

    class Watched(Network):
        def denoised(self, params, noisy, given, *, times, levels, cache):
            held = sum(level.length for run in cache.encoder.runs for level in run)
            calls.append((levels.start, held, times))
            return super().denoised(params, noisy, given, times=times, levels=levels, cache=cache)

    made = network(cls=Watched)
    labels, keys = jnp.arange(1), jax.random.split(jax.random.key(0), 1)
    NextEntity(ConstantGuidance(0.0), ODE)(made[0], params(), made[1], {}, labels, keys)
    read = [(level, held) for level, held, t in calls if t is None]
    steps = {(level, held) for level, held, t in calls if t is not None}
    assert read == [(0, 0), (1, 4), (2, 8)] and steps == {(k, 4 * k) for k in range(4)}


def test_equal_ends_of_an_annealing_are_plain_sampling():
    cut, guidance = ((1, 2), 1), LinearGuidance(1.0)

    def tokens(**changes):
        decoder = NextEntity(guidance, dataclasses.replace(SDE, **changes))
        return drawn(network(*cut), decoder, params(*cut)).targets

    plain = tokens()
    np.testing.assert_array_equal(tokens(last_num_steps=4, annealing="linear"), plain)
    moved = np.abs(tokens(last_num_steps=2, annealing="linear") - plain).max(-1) > 1e-5
    assert not moved[:, 0].any() and moved[:, 1:].all()


def test_twins_that_do_not_count_are_not_computed_and_change_nothing():
    rows, cut = [], ((1, 2, 3), 1)

    class Watched(Network):
        def denoised(self, params, noisy, given, **kwargs):
            rows.append((kwargs["levels"].start, len(noisy)))
            return super().denoised(params, noisy, given, **kwargs)

    def tokens(cls, guidance, sampling=ODE):
        return drawn(network(*cut, cls), NextEntity(guidance, sampling), params(*cut)).targets

    guidance = PerLevelGuidance((0.0, 1.0, 0.0))
    found = tokens(Watched, guidance)
    # Read for the guided entity, and that one: with twins. What is not guided is drawn without.
    assert set(rows) == {(0, 2), (0, 4), (1, 4), (1, 2), (2, 2)}
    always = PerLevelGuidance(tuple(jnp.asarray(guidance.cfg)))
    np.testing.assert_allclose(tokens(Network, always), found, rtol=1e-3, atol=1e-4)
    early = dataclasses.replace(ODE, guidance_interval=0.5)
    assert np.abs(tokens(Network, guidance, early) - found).max() > 1e-4


def test_an_image_does_not_hang_on_its_batch():
    cut, decoder = ((1, 2), 1), NextEntity(LinearGuidance(1.0), SDE)
    three, two = (drawn(network(*cut), decoder, params(*cut), n).targets for n in (3, 2))
    np.testing.assert_allclose(three[:2], two, rtol=1e-3, atol=1e-4)
    assert np.abs(three[0] - three[1]).max() > 0.1


def test_the_other_way_of_drawing_is_named():
    (made, codec), keys = network(), jax.random.split(jax.random.key(0), 1)
    labels = jnp.zeros(1, jnp.int32)
    with pytest.raises(ValueError, match="sampling.decoder 'next_entity'"):
        NextScale(sampling=ODE)(made, params(), codec, {}, labels, keys)
    var = build.network(load("family/flowar", "smallest"))
    with pytest.raises(ValueError, match="choose model.transformer 'xar' or 'acdit'"):
        NextEntity()(var, {}, codec, {}, labels, keys)
