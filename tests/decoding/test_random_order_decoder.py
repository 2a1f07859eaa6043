"""Generation in a random order: every token once, whatever the iterations and the stages."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recipes import load

from var_jax import build
from var_jax.codecs.latent import Latent
from var_jax.decoding.guidance import ConstantGuidance, LinearGuidance
from var_jax.decoding.next_scale import NextScale
from var_jax.decoding.random_order import RandomOrder, masked_after
from var_jax.heads.diffusion import DiffusionSampling
from var_jax.network import Network
from var_jax.pyramid import ScalePyramid


@pytest.mark.parametrize("length, count", [(16, 1), (16, 5), (64, 16), (256, 64), (256, 256)])
def test_every_iteration_draws_and_none_are_left(length, count):
    left = np.array([length, *masked_after(length, count)])
    assert len(left) == count + 1 and left[-1] == 0 and np.diff(left).max() <= -1


class Counting(Network):
    """A network whose draw of a token says how many were left, and what its key is."""

    def filled_in(self, params, own, given, *, masked, max_known):
        assert isinstance(max_known, int)
        left = masked.sum(1, keepdims=True)
        return jnp.broadcast_to(left[..., None], (*masked.shape, 1)).astype(jnp.float32)

    def sample(self, params, hiddens, weights, keys, settings):
        noise = jax.vmap(jax.random.normal)(keys)[:, None, None]
        return jnp.concatenate([hiddens[0], noise], -1), None


def network(cls=Network):
    made = build.network(load("family/mar", "smallest"))
    return cls(made.transformer, made.head)


def drawn(network, params, decoder, codec, batch=2):
    keys = jax.vmap(jax.random.key)(jnp.arange(batch))
    run = jax.jit(lambda params: decoder(network, params, codec, {}, jnp.arange(batch), keys))
    return np.asarray(run(params).targets)


@pytest.mark.parametrize("count, stages", [(1, 1), (5, 2), (5, 5)])
def test_each_token_is_drawn_once_whatever_the_stages(count, stages):
    codec = Latent(ScalePyramid(((4, 4),)), 2)
    decoder = RandomOrder(ConstantGuidance(0.0), num_iterations=count, num_stages=stages)
    found = drawn(network(Counting), {}, decoder, codec)
    left = np.array([16, *masked_after(16, count)])
    for example in found:
        seen, counts = np.unique(example[:, 0], return_counts=True)
        np.testing.assert_array_equal(seen[::-1], left[:-1])
        np.testing.assert_array_equal(counts[::-1], -np.diff(left))
        assert len(np.unique(example[:, 1])) == 16
    assert count == 1 or (found[0, :, 0] != found[1, :, 0]).any()
    one = dataclasses.replace(decoder, num_stages=1)
    np.testing.assert_array_equal(drawn(network(Counting), {}, one, codec), found)


def test_the_weight_grows_with_what_is_drawn():
    weights = RandomOrder(LinearGuidance(2.0), num_iterations=4, num_stages=1).weights(16)
    np.testing.assert_allclose(weights, [2 * n / 16 for n in (2, 5, 10, 15)])
    assert RandomOrder(ConstantGuidance(2.0), num_iterations=4).weights(16) == [2.0] * 4


@pytest.mark.parametrize("count, stages", [(0, 1), (17, 1), (4, 5), (4, 0)])
def test_numbers_that_do_not_fit_are_named(count, stages):
    made = network()
    decoder = RandomOrder(num_iterations=count, num_stages=stages)
    with pytest.raises(ValueError, match=f"num_iterations is {count} and num_stages {stages}"):
        drawn(made, {}, decoder, Latent(made.mar.pyramid, 16))


def test_the_other_way_of_drawing_is_named():
    made, keys = network(), jax.random.split(jax.random.key(0), 1)
    codec, labels = Latent(made.mar.pyramid, 16), jnp.zeros(1, jnp.int32)
    with pytest.raises(ValueError, match="sampling.decoder 'random_order'"):
        NextScale(sampling=DiffusionSampling())(made, {}, codec, {}, labels, keys)
    var = build.network(load("family/flowar", "smallest"))
    with pytest.raises(ValueError, match="choose model.transformer 'mar'"):
        RandomOrder()(var, {}, codec, {}, labels, keys)
