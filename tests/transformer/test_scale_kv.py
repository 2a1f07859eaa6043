import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recipes import load
from small_network import PYRAMID, generate, model

from var_jax import build
from var_jax.decoding import base
from var_jax.decoding.guidance import LinearGuidance
from var_jax.decoding.next_scale import NextScale
from var_jax.heads.categorical import CategoricalSampling
from var_jax.pyramid import ScalePyramid
from var_jax.transformer.cache import KeysValues
from var_jax.transformer.scale_kv import ScaleKV

LABELS = np.arange(24) % 3
SIDES = ScalePyramid.from_patch_nums((1, 2, 4, 6))


def draw(policy, made=None):
    decoder = NextScale(LinearGuidance(2.0), CategoricalSampling(0, 0.9), policy)
    return generate(decoder, LABELS, made)


@pytest.mark.parametrize(
    "drafters",
    [(1,), pytest.param((), marks=pytest.mark.slow), pytest.param((0, 3), marks=pytest.mark.slow)],
)
def test_budgets_that_hold_all_change_nothing(drafters):
    """However the blocks are split into runs."""
    made = model(4, seed=3)
    roomy = ScaleKV(PYRAMID, drafters, PYRAMID.length, PYRAMID.length, base_capacity=0, window=1)
    jax.tree.map(np.testing.assert_array_equal, draw(roomy, made), draw(None, made))
    # Nor do small ones that the cache has not come to.
    late = ScaleKV(PYRAMID, drafters, 1, 1, base_capacity=PYRAMID.length, window=1)
    np.testing.assert_array_equal(draw(late, made).targets, draw(None, made).targets)


def test_runs_keep_different_numbers_of_keys():
    policy = ScaleKV(PYRAMID, (1,), (1, 4, 1), (1, 2, 1), base_capacity=1, window=1)
    net, params = model(4, seed=3)

    @jax.jit
    def run(params, labels, keys):
        state = base.start(net, labels, keys, paired=True)
        for level in range(2):
            _, state = base.hidden_states(net, params, state, policy)
            inputs = jnp.ones((len(labels), PYRAMID.sizes[level + 1], 4))
            target = jnp.zeros((len(labels), PYRAMID.sizes[level]), jnp.int32)
            state = state.replace(inputs=(*state.inputs, inputs), targets=(*state.targets, target))
        held = state.cache
        _, state = base.hidden_states(net, params, state, policy)
        return held, state.cache

    keys = jax.vmap(jax.random.key)(np.arange(2))
    held, after = run(params, np.arange(2), keys)
    lengths = [tuple(level.length for level in run) for run in held.runs]
    assert lengths == [(2, 0), (4, 0), (2, 0)]
    assert [run[0].keys.shape[0] for run in held.runs] == [1, 1, 2]
    assert all(level.queries is None for run in held.runs for level in run)
    assert all(run == () for run in after.runs)
    # And a generation that forgets goes on to its end, to other tokens of the last level.
    found, full = (draw(p, (net, params)).targets for p in (policy, None))
    np.testing.assert_array_equal(found[:, : PYRAMID.offsets[2]], full[:, : PYRAMID.offsets[2]])
    assert (found != full).any()


def random_levels(upto, seed=0):
    rng = np.random.default_rng(seed)

    def entry(level):
        shape = (2, 3, SIDES.sizes[level], 2, 8)
        k, v, q = (jnp.asarray(rng.normal(size=shape), jnp.float32) for _ in range(3))
        return KeysValues(k.reshape(*shape[:3], -1), v.reshape(*shape[:3], -1), q)

    return tuple(entry(level) for level in range(upto + 1))


def by_head(x):
    """[blocks, B, n, heads * H] -> [blocks, B, n, heads, H]."""
    return np.asarray(x).reshape(*x.shape[:3], 2, 8)


POLICY = ScaleKV(SIDES, (0,), 30, 20, base_capacity=10)


def test_the_window_always_stays():
    levels = random_levels(3)
    kept = by_head(POLICY.compress(levels, 0, 3)[0].keys)
    observed = by_head(levels[-1].keys)[:, :, POLICY.observed(3)]
    assert kept.shape[2] == 30
    for b, i, head in np.ndindex(2, 3, 2):
        rows = {row.tobytes() for row in kept[b, i, :, head]}
        assert {row.tobytes() for row in observed[b, i, :, head]} <= rows


def test_the_rest_are_those_that_the_window_looks_at():
    levels = random_levels(3)
    policy = dataclasses.replace(POLICY, neighbourhood=1)
    keys = by_head(jnp.concatenate([entry.keys for entry in levels], 2))
    kept = np.asarray(policy.select(keys, levels[-1].queries, 3, 20))
    assert (np.diff(kept, axis=2) > 0).all()
    observed = SIDES.offsets[3] + policy.observed(3)
    for b, i, head in np.ndindex(2, 3, 2):
        query = np.asarray(levels[-1].queries)[b, i, policy.observed(3), head].sum(0)
        scores = keys[b, i, :, head] @ query
        scores[observed] = -np.inf
        best = {*observed, *np.argsort(-scores)[:4]}
        assert set(kept[b, i, :, head]) == best


def test_heads_choose_for_themselves():
    levels = random_levels(3)

    def turn(entry):
        flat = (by_head(x)[..., ::-1, :].reshape(x.shape) for x in (entry.keys, entry.values))
        return KeysValues(*map(jnp.asarray, flat), entry.queries[..., ::-1, :])

    turned = tuple(map(turn, levels))
    kept = [by_head(POLICY.compress(each, 1, 3)[0].values) for each in (levels, turned)]
    np.testing.assert_array_equal(kept[0], kept[1][..., ::-1, :])


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="square number, got 15"):
        dataclasses.replace(POLICY, window=15)
    with pytest.raises(ValueError, match="small keeps 4 keys, fewer than the window's 16"):
        dataclasses.replace(POLICY, small=4)
    with pytest.raises(ValueError, match="large has 2 budgets, but the pyramid has 4 levels"):
        dataclasses.replace(POLICY, large=(30, 30))
    with pytest.raises(ValueError, match=r"drafters are \(0,\), but the blocks are 0\.\.-1"):
        POLICY.runs(0)
    with pytest.raises(ValueError, match="the context dropped 1 of them"):
        POLICY.compress(random_levels(3)[1:], 0, 3)


@pytest.mark.parametrize("variant", ["", "smallest", "d30"])
def test_the_config_builds(variant):
    config = load("family/scale_kv", variant)
    build.check_config(config)
    policy = build.decoder(config).cache_policy
    assert isinstance(policy, ScaleKV) and policy.pyramid == build.pyramid(config)
    policy.runs(config.model.depth)
