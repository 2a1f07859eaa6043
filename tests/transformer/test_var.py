import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import Decay

from var_jax.context import BlockCausal, OwnScale, RecentLevels
from var_jax.heads.categorical import CategoricalHead
from var_jax.objectives.level_cycle import LevelCycle
from var_jax.parallel import sharding
from var_jax.pyramid import ScalePyramid
from var_jax.transformer.cache import Cache
from var_jax.transformer.var import VAR

PYRAMID = ScalePyramid.from_patch_nums((1, 2, 3))
BATCH, CODE_DIM = 2, 4


def make(context=None, **settings):
    fields = dict(depth=2, width=32, num_heads=2, num_classes=5)
    var = VAR(PYRAMID, code_dim=CODE_DIM, context=context or BlockCausal(), **fields | settings)
    inputs = jax.random.normal(jax.random.key(0), (BATCH, PYRAMID.length, CODE_DIM))
    labels = jnp.array([3, 5])
    init = jax.jit(lambda key: sharding.unbox(var.init(key, inputs, labels)["params"]))
    params = init(jax.random.key(1))
    # At initialisation the gates are nearly shut; open them, or nothing would be tested.
    rng = np.random.default_rng(2)
    params = jax.tree.map(lambda x: x + np.float32(0.3) * rng.normal(size=x.shape), params)
    params = jax.tree.map(lambda x: x.astype(jnp.float32), params)
    return var, params, inputs, labels


@functools.partial(jax.jit, static_argnames=("var", "num_levels"))
def apply(var, params, inputs, labels, keys=None, num_levels=None):
    pyramid = var.pyramid.prefix(num_levels or var.pyramid.num_levels)
    return var.apply({"params": params}, inputs, labels, keys, pyramid=pyramid)[0]


@functools.partial(jax.jit, static_argnames=("var", "level"))
def step(var, params, level, inputs, labels, cache):
    levels = range(level, level + 1)
    return var.apply({"params": params}, inputs, labels, levels=levels, cache=cache)


@pytest.mark.parametrize(
    "context, settings",
    [
        (BlockCausal(), dict()),
        (BlockCausal(), dict(qk_norm=False, shared_adaln=True)),
        (OwnScale(), dict()),
        (RecentLevels(1), dict()),
        (OwnScale(), dict(mixer=Decay(32))),
        (RecentLevels(1), dict(mixer=Decay(32), shared_adaln=True)),
    ],
)
def test_cached_levels_equal_the_teacher_forced_pass(context, settings):
    var, params, inputs, labels = make(context, **settings)
    full = apply(var, params, inputs, labels)
    cache = Cache()
    for k in range(PYRAMID.num_levels):
        level_inputs = None if k == 0 else inputs[:, PYRAMID.level(k)]
        hidden, cache = step(var, params, k, level_inputs, labels, cache)
        if context == OwnScale():
            assert cache.runs == ((),)  # Not even on the way.
        np.testing.assert_allclose(hidden, full[:, PYRAMID.level(k)], rtol=2e-4, atol=2e-5)
    assert cache.runs == ((),)  # Nothing is kept once nobody will look at it.


def test_blocks_run_in_groups_and_some_can_be_left_out():
    var, params, inputs, labels = make()

    @functools.partial(jax.jit, static_argnames=("var", "runs"))
    def hidden(var, params, runs=None):
        return var.apply({"params": params}, inputs, labels, runs=runs)[0]

    whole = hidden(var, params)
    np.testing.assert_allclose(hidden(var, params, ((0,), (1,))), whole, rtol=1e-5, atol=1e-6)
    blocks = jax.tree.map(lambda x: x[1:], params["blocks"])
    short = hidden(var.clone(depth=1), {**params, "blocks": blocks})
    np.testing.assert_allclose(hidden(var, params, ((1,),)), short, rtol=1e-5, atol=1e-6)
    assert np.abs(short - whole).max() > 1e-3


@pytest.mark.parametrize("shared", [False, True])
def test_modulation_is_made_at_level_0_alone(shared):
    var, params, inputs, labels = make(shared_adaln=shared)
    _, cache = step(var, params, 0, None, labels, Cache())
    level_inputs = inputs[:, PYRAMID.level(1)]
    expected, _ = step(var, params, 1, level_inputs, labels, cache)

    def spoil(path, x):
        unused = "adaln" in jax.tree_util.keystr(path) or "shared_modulation" in str(path[0])
        return jnp.full_like(x, jnp.nan) if unused and "final" not in str(path[0]) else x

    spoiled = jax.tree_util.tree_map_with_path(spoil, params)
    assert any(jnp.isnan(x).any() for x in jax.tree.leaves(spoiled))
    hidden, _ = step(var, spoiled, 1, level_inputs, labels, cache)
    np.testing.assert_array_equal(hidden, expected)


@pytest.mark.parametrize("level", [1, 2])
def test_no_level_sees_a_finer_one(level):
    var, params, inputs, labels = make()
    changed = inputs.at[:, PYRAMID.offsets[level] :].add(1.0)
    before, after = (apply(var, params, x, labels) for x in (inputs, changed))
    coarser = slice(0, PYRAMID.offsets[level])
    np.testing.assert_array_equal(before[:, coarser], after[:, coarser])
    moved = np.abs(before - after)[:, PYRAMID.level(level)]
    assert (moved.max(-1) > 1e-3).all()  # Every token of the level reads its input.


def test_a_level_sees_all_of_itself():
    var, params, inputs, labels = make()
    last = PYRAMID.length - 1
    before, after = (apply(var, params, x, labels) for x in (inputs, inputs.at[:, last].add(1.0)))
    moved = np.abs(before - after)[:, PYRAMID.level(2)].max(-1)
    assert (moved > 1e-5).all()


def test_a_mixer_carries_what_attention_does_not_see():
    var, params, inputs, labels = make(OwnScale(), mixer=Decay(32))
    first = slice(0, PYRAMID.offsets[1])
    before, after = (apply(var, params, x, labels) for x in (inputs, inputs.at[:, 1].add(1.0)))
    np.testing.assert_array_equal(before[:, first], after[:, first])
    assert (np.abs(before - after)[:, PYRAMID.offsets[1] :].max((0, 2)) > 1e-5).all()
    # Without what it adds, own-scale attention is left.
    mixer = jax.tree.map(jnp.zeros_like, params["blocks"]["mixer"])
    silent = {**params, "blocks": {**params["blocks"], "mixer": mixer}}
    plain, level = apply(var, silent, inputs, labels), PYRAMID.level(2)
    changed = apply(var, silent, inputs.at[:, : level.start].add(1.0), labels)
    np.testing.assert_array_equal(plain[:, level], changed[:, level])
    with pytest.raises(ValueError, match="Level 1 has no state"):
        var.apply({"params": params}, inputs[:, PYRAMID.level(1)], labels, levels=range(1, 2))
    with pytest.raises(ValueError, match="sees the levels .* and no mixer"):
        LevelCycle(PYRAMID, var.sees(), 1)


def test_own_scale_context_is_a_pass_for_each_level_alone():
    var, params, inputs, labels = make(OwnScale())
    whole = apply(var, params, inputs, labels)
    alone = jax.jit(
        lambda params, inputs, levels: var.apply({"params": params}, inputs, labels, levels=levels),
        static_argnames="levels",
    )
    for k in range(PYRAMID.num_levels):
        level = PYRAMID.level(k)
        hidden, _ = alone(params, inputs[:, level], levels=range(k, k + 1))
        np.testing.assert_allclose(hidden, whole[:, level], rtol=2e-4, atol=2e-5)


def test_a_prefix_of_levels_gives_the_same_numbers():
    var, params, inputs, labels = make()
    full = apply(var, params, inputs, labels)
    prefix = apply(var, params, inputs[:, :5], labels, num_levels=2)
    np.testing.assert_allclose(prefix, full[:, :5], rtol=2e-5, atol=2e-6)


def test_remat_and_unrolling_change_nothing():
    var, params, inputs, labels = make()
    keys = jax.random.split(jax.random.key(3), BATCH)

    def gradient(var):
        # Compiled whole: that is where rematerialisation acts.
        return jax.jit(jax.grad(lambda p: jnp.square(apply(var, p, inputs, labels, keys)).mean()))(
            params
        )

    expected = gradient(var)
    for settings in (dict(remat="full"), dict(remat="dots", scan_unroll=2)):
        got = gradient(make(**settings)[0])
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), got, expected
        )


def test_class_dropout_and_drop_path_follow_the_examples_key():
    var, params, inputs, labels = make(class_drop_rate=0.5, drop_path_rate=0.5)
    keys = jax.random.split(jax.random.key(4), 8)
    inputs, labels = jnp.tile(inputs, (4, 1, 1)), jnp.tile(labels, 4)
    together = apply(var, params, inputs, labels, keys)
    alone = jnp.concatenate(
        [
            apply(var, params, inputs[i : i + 1], labels[i : i + 1], keys[i : i + 1])
            for i in range(8)
        ]
    )
    np.testing.assert_allclose(together, alone, rtol=2e-4, atol=2e-5)
    plain = apply(var, params, inputs, labels)
    changed = np.abs(together - plain).max((1, 2)) > 1e-3
    assert changed.any()
    # Without any rate the keys do nothing.
    still = make(class_drop_rate=0.0, drop_path_rate=0.0)[0]
    np.testing.assert_allclose(apply(still, params, inputs, labels, keys), plain, rtol=1e-5)


def test_a_dropped_class_is_the_class_after_the_last():
    var, params, inputs, _ = make(class_drop_rate=1.0)
    keys = jax.random.split(jax.random.key(5), BATCH)
    dropped = apply(var, params, inputs, jnp.array([0, 1]), keys)
    np.testing.assert_allclose(dropped, apply(var, params, inputs, jnp.array([5, 5])), rtol=1e-5)


def test_initialisation_has_the_official_scales():
    var = VAR(PYRAMID, num_classes=50, code_dim=8, depth=3, width=192, num_heads=3)
    inputs, labels = jnp.zeros((1, PYRAMID.length, 8)), jnp.zeros((1,), int)
    init = jax.jit(lambda key: var.init(key, inputs, labels))(jax.random.key(0))
    params = sharding.unbox(init["params"])
    std = (1 / 3 / 192) ** 0.5
    blocks = params["blocks"]
    expected = {
        "class": (params["class_embedding"], std),
        "qkv": (blocks["attention"]["qkv_kernel"], std),
        "out": (blocks["attention"]["out"]["kernel"], std / 6**0.5),
        "up": (blocks["mlp"]["up"]["kernel"], std),
        "down": (blocks["mlp"]["down"]["kernel"], std / 6**0.5),
        "gamma": (blocks["adaln"]["kernel"][..., :2, :], std * 1e-3),
        "scale": (blocks["adaln"]["kernel"][..., 2:, :], std * 0.5),
        "final": (params["final_adaln"]["modulation"]["kernel"], std * 0.5),
    }
    for name, (value, deviation) in expected.items():
        np.testing.assert_allclose(np.std(value), deviation, rtol=0.05, err_msg=name)
    np.testing.assert_allclose(blocks["attention"]["log_scale"], np.log(4.0), rtol=1e-6)
    # No two layers start alike.
    assert np.abs(np.diff(blocks["mlp"]["up"]["kernel"], axis=0)).max() > 0


def count_parameters(var, head):
    inputs = jnp.zeros((1, var.pyramid.length, var.code_dim))

    def init():
        return (
            var.init(jax.random.key(0), inputs, jnp.zeros((1,), int)),
            head.init(jax.random.key(0), jnp.zeros((1, 1, var.width))),
        )

    return sum(x.size for x in jax.tree.leaves(jax.eval_shape(init)))


@pytest.mark.parametrize(
    "image_size, depth, shared, millions",
    [
        (256, 16, False, 310.3),
        (256, 20, False, 600.9),
        (256, 24, False, 1033.4),
        (256, 30, False, 2010.0),
        (512, 36, True, 2353.9),
    ],
)
def test_published_sizes(image_size, depth, shared, millions):
    width = 64 * depth
    pyramid = ScalePyramid.for_image_size(image_size)
    var = VAR(pyramid, 1000, 32, depth, width, depth, shared_adaln=shared)
    assert round(count_parameters(var, CategoricalHead(4096, width)) / 1e6, 1) == millions


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="100 is not divisible by num_heads 3"):
        VAR(PYRAMID, 10, 4, 2, 100, 3)
    with pytest.raises(ValueError, match="sometimes"):
        VAR(PYRAMID, 10, 4, 2, 96, 3, remat="sometimes")
