"""Levels whose tokens see what is near them in their own level (MVAR)."""

import functools

import jax
import numpy as np
import pytest
from small_network import CODE_DIM, filled, network

from var_jax.context import OwnNeighbourhood, OwnScale, dense_mask, key_segments
from var_jax.parallel import sharding
from var_jax.pyramid import ScalePyramid
from var_jax.transformer.cache import Cache

PYRAMID = ScalePyramid.from_patch_nums((1, 2, 4, 5))
NEAR = OwnNeighbourhood(2, 3)
LABELS = np.array([1, 3])


@functools.cache
def model(context):
    """A transformer of one block, and parameters that all contexts share."""
    made = network(depth=1, pyramid=PYRAMID)
    return made.transformer.clone(context=context), filled(made.init_params, 0)["transformer"]


@functools.partial(jax.jit, static_argnames=("context", "levels", "cached"))
def run(context, inputs, levels=None, cached=False):
    transformer, params = model(context)
    cache = Cache() if cached else None
    return transformer.apply({"params": params}, inputs, LABELS, levels=levels, cache=cache)


def inputs(seed=0):
    shape = (len(LABELS), PYRAMID.length, CODE_DIM)
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_a_token_reaches_those_that_it_is_near_to_and_no_others():
    mask = dense_mask(key_segments(PYRAMID, NEAR), PYRAMID.length)
    before = np.asarray(run(NEAR, inputs())[0])
    for token in (PYRAMID.offsets[2], PYRAMID.offsets[2] + 6, PYRAMID.length - 1):
        changed = inputs()
        changed[:, token] += 1
        moved = np.abs(np.asarray(run(NEAR, changed)[0]) - before).max((0, 2))
        assert (moved[mask[:, token]] > 1e-4).all()
        assert (moved[~mask[:, token]] == 0).all()


def test_a_window_as_large_as_the_level_is_own_scale_attention():
    whole = run(OwnScale(), inputs())[0]
    np.testing.assert_array_equal(run(OwnNeighbourhood(0, 5), inputs())[0], whole)
    assert np.abs(run(NEAR, inputs())[0] - whole).max() > 1e-2


@pytest.mark.parametrize("level", range(PYRAMID.num_levels))
def test_a_level_drawn_alone_equals_the_teacher_forced_pass(level):
    tokens = PYRAMID.level(level)
    given = inputs()
    hidden, cache = run(NEAR, given[:, tokens], range(level, level + 1), cached=True)
    np.testing.assert_allclose(hidden, run(NEAR, given)[0][:, tokens], rtol=2e-4, atol=2e-5)
    assert cache.runs == ((),)  # No level looks back.


def test_eight_devices_give_the_numbers_of_one():
    transformer, params = model(NEAR)
    given, labels = np.tile(inputs(), (4, 1, 1)), np.tile(LABELS, 4)
    mesh = sharding.make_mesh(data=4, tensor=2)

    @jax.jit
    def spread(params, given, labels):
        return transformer.apply({"params": params}, given, labels)[0]

    with sharding.activate(mesh, "fsdp_tensor"):
        rows = jax.device_put((given, labels), sharding.batch_sharding(mesh))
        found = spread(params, *rows)
    assert len(found.sharding.device_set) == 8
    one = run(NEAR, inputs())[0]
    np.testing.assert_allclose(found, np.tile(one, (4, 1, 1)), rtol=2e-4, atol=2e-5)
