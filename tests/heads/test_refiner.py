import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small_network
import toys
from recipes import load

from var_jax import build
from var_jax.fields import Field
from var_jax.heads.categorical import CategoricalHead, CategoricalSampling
from var_jax.heads.refiner import RefinerHead
from var_jax.parallel import sharding
from var_jax.plan.flops import program_flops
from var_jax.pyramid import ScalePyramid
from var_jax.train.optim import OptimizerConfig, make_optimizer

#: Levels of 1, 4 and 6 tokens; the last one is not refined.
PYRAMID = ScalePyramid(((1, 1), (2, 2), (2, 3)))
WIDTH, VOCAB = 8, 3
PLAIN = CategoricalHead(VOCAB, WIDTH)
ALL = CategoricalSampling(top_k=0, top_p=0.0)


def make_head(**changes):
    settings = dict(pyramid=PYRAMID, width=WIDTH, max_side=2, num_heads=2)
    return RefinerHead(target=Field("tokens", (), num_values=VOCAB), **{**settings, **changes})


@functools.cache
def params_of(head):
    """Parameters that differ from zero everywhere."""
    return small_network.filled(
        lambda key: head.init(key, jnp.zeros((1, head.pyramid.length, WIDTH)))["params"], 0
    )


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def tokens_of(seed, batch, length=PYRAMID.length):
    return jnp.asarray(np.random.default_rng(seed).integers(0, VOCAB, (batch, length)))


def keys(batch, seed=0):
    return jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(seed)))(jnp.arange(batch))


@functools.partial(jax.jit, static_argnums=0)
def apply_logits(head, params, hidden, target):
    return head.apply({"params": params}, hidden, target)


def logits(hidden, target, head=None):
    head = head or make_head()
    return apply_logits(head, params_of(head), hidden, target)


@functools.partial(jax.jit, static_argnums=(0, 2, 4))
def apply_sample(head, params, weights, hiddens, settings, keys):
    args = hiddens, weights, keys, settings
    return head.apply({"params": params}, *args, method="sample")


def sample(hiddens, weights, keys, settings, head=None):
    head = head or make_head()
    return apply_sample(head, params_of(head), weights, hiddens, settings, keys)


def test_the_probabilities_of_all_pyramids_sum_to_1():
    pyramid = ScalePyramid.from_patch_nums((1, 2))
    head = make_head(pyramid=pyramid)
    every = jnp.array(list(itertools.product(range(VOCAB), repeat=pyramid.length)))
    hidden = jnp.broadcast_to(normal(0, 1, pyramid.length, WIDTH), (*every.shape, WIDTH))
    params = {"params": params_of(head)}
    loss, metrics = head.apply(params, hidden, every, None, pyramid, method="loss")
    np.testing.assert_array_equal(loss, metrics["loss"])
    joint = np.exp(-np.float64(loss).sum(1))
    np.testing.assert_allclose(joint.sum(), 1, rtol=1e-5)
    # And it is no product of what holds for each token.
    table = joint.reshape((VOCAB,) * pyramid.length)
    pair = table.sum((0, 3, 4))
    assert np.abs(pair - np.outer(pair.sum(1), pair.sum(0))).max() > 1e-3


@pytest.mark.parametrize("dtype, top_k", [(jnp.float32, 0), (jnp.bfloat16, 1)])
def test_at_initialisation_it_is_the_categorical_head(dtype, top_k):
    head, plain = make_head(dtype=dtype), PLAIN.clone(dtype=dtype)
    hidden, target = normal(0, 2, PYRAMID.length, WIDTH), tokens_of(1, 2)
    made = sharding.unbox(jax.jit(head.init)(jax.random.key(0), hidden))["params"]
    # Logits far from each other.
    made["projection"] = jax.tree.map(lambda x: 40 * x, made["projection"])
    same = {"params": {"projection": made["projection"]}}
    loss = head.apply({"params": made}, hidden, target, None, PYRAMID, method="loss")
    expected = plain.apply(same, hidden, target, method="loss")
    jax.tree.map(np.testing.assert_array_equal, loss, expected)
    settings = CategoricalSampling(top_k=top_k, top_p=0.9, smooth=True).at(1, PYRAMID)
    args = (hidden[:, :4], normal(1, 2, 4, WIDTH)), (2.5, -1.5), keys(2), settings
    found = head.apply({"params": made}, *args, method="sample")
    expected = plain.apply(same, *args, method="sample")
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-3, atol=1e-5)


def test_a_token_is_read_by_the_later_ones_of_its_level_alone():
    pyramid = ScalePyramid.from_patch_nums((1, 2, 2))
    head = make_head(pyramid=pyramid)
    hidden, target = normal(0, 1, 9, WIDTH), tokens_of(1, 1, 9)
    before = logits(hidden, target, head)

    def moved(hidden, target):
        return np.abs(logits(hidden, target, head) - before).max((0, 2)) > 1e-6

    for i in range(9):
        (level,) = (k for k in range(3) if i in range(9)[pyramid.level(k)])
        later = (np.arange(9) > i) & (pyramid.level_ids == level)
        token = moved(hidden, target.at[:, i].set((target[:, i] + 1) % VOCAB))
        np.testing.assert_array_equal(token, later)
        state = moved(hidden.at[:, i].add(1.0), target)
        np.testing.assert_array_equal(state, later | (np.arange(9) == i))


@pytest.mark.parametrize("guided", [False, True])
def test_what_is_drawn_one_by_one_follows_the_probabilities_of_one_pass(guided):
    head = make_head(max_side=3)
    settings = ALL.at(2, PYRAMID)
    weights = (2.5, -1.5) if guided else (1.0,)
    hiddens = tuple(normal(seed, 64, 6, WIDTH) for seed in range(len(weights)))
    tokens, codes = sample(hiddens, weights, keys(64), settings, head)
    np.testing.assert_array_equal(codes, tokens)
    # A draw is the largest of log probability and noise, so all of the law is in the comparison.
    pad = jnp.zeros((64, 5, WIDTH)), jnp.zeros((64, 5), jnp.int32)
    whole = (jnp.concatenate([pad[0], hidden], 1) for hidden in hiddens)
    found = [logits(x, jnp.concatenate([pad[1], tokens], 1), head)[:, 5:] for x in whole]
    mix = sum(weight * x for weight, x in zip(weights, found, strict=True))
    noise = jax.vmap(lambda key: jax.random.gumbel(key, (6, VOCAB)))(keys(64))
    np.testing.assert_array_equal((mix + noise).argmax(-1), tokens)
    # It is not the law of the categorical head.
    params = {"params": {"projection": params_of(head)["projection"]}}
    plain = PLAIN.apply(params, hiddens, weights, keys(64), settings, method="sample")[0]
    assert (plain != tokens).mean() > 0.1


def test_levels_above_the_size_are_the_categorical_heads():
    params = {"params": {"projection": params_of(make_head())["projection"]}}
    hidden, target = normal(0, 4, PYRAMID.length, WIDTH), tokens_of(1, 4)
    plain = PLAIN.apply(params, hidden)
    same = np.abs(logits(hidden, target) - plain).max((0, 2)) < 1e-6
    np.testing.assert_array_equal(same, PYRAMID.level_ids != 1)
    # A part of a pyramid in which none is refined.
    part = PYRAMID.part(range(2, 3))
    args = hidden[:, 5:], target[:, 5:], None, part
    found = make_head().apply({"params": params_of(make_head())}, *args, method="loss")
    expected = PLAIN.apply(params, *args[:2], method="loss")
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    args = (hidden[:, 5:],), (1.0,), keys(4), ALL.at(2, PYRAMID)
    np.testing.assert_array_equal(sample(*args)[0], PLAIN.apply(params, *args, method="sample")[0])


def test_a_level_does_not_hang_on_its_batch():
    hidden, settings = normal(0, 16, 4, WIDTH), ALL.at(1, PYRAMID)
    whole = sample((hidden,), (1.0,), keys(16), settings)[0]
    part = sample((hidden[5:8],), (1.0,), keys(16)[5:8], settings)[0]
    np.testing.assert_array_equal(part, whole[5:8])
    assert len(np.unique(whole, axis=0)) > 8


def test_settings_of_the_categorical_head_hold():
    hidden = normal(0, 32, 4, WIDTH)

    def draw(**changes):
        changed = CategoricalSampling(**{"top_k": 0, "top_p": 0.0, **changes})
        return sample((hidden,), (1.0,), keys(32), changed.at(1, PYRAMID))

    tokens = draw()[0]
    assert set(np.unique(tokens)) == {0, 1, 2}
    assert set(np.unique(draw(processors=(toys.Never(1),))[0])) == {0, 2}
    greedy = draw(top_k=1)[0]
    np.testing.assert_array_equal(draw(temperature=1e-4)[0], greedy)
    assert (greedy != tokens).any()
    same, average = draw(smooth=True)
    np.testing.assert_array_equal(same, tokens)
    np.testing.assert_allclose(average.sum(-1), 1, rtol=1e-5)
    assert average.shape == (32, 4, VOCAB)


@pytest.mark.parametrize("stopped", [False, True])
def test_with_stopped_gradients_the_head_alone_learns(stopped):
    head, target = make_head(stop_gradient=stopped), tokens_of(1, 2)
    params = {"head": params_of(head), "hidden": normal(0, 2, PYRAMID.length, WIDTH)}

    def total(params):
        args = params["hidden"], target, None, PYRAMID
        return head.apply({"params": params["head"]}, *args, method="loss")[0].sum()

    @jax.jit
    def update(params):
        optimizer = make_optimizer(OptimizerConfig(1e-2, weight_decay=0.0), 10)
        return optimizer.update(jax.grad(total)(params), optimizer.init(params), params, step=0)[0]

    moved = jax.tree.map(lambda x: np.asarray(x).any(), update(params))
    assert moved["hidden"] != stopped
    assert all(jax.tree.leaves(moved["head"]))


def test_a_checkerboard_is_learned_as_a_whole():
    """Two images, each the other's negative: to tokens apart from each other, four fair coins."""
    pyramid = ScalePyramid.from_patch_nums((1, 2))
    boards = jnp.array([[0, 0, 1, 1, 0], [0, 1, 0, 0, 1]])
    hidden = jnp.broadcast_to(normal(0, 1, 5, WIDTH), (2, 5, WIDTH))

    def trained(head):
        params = sharding.unbox(head.init(jax.random.key(0), hidden))["params"]
        optimizer = optax.adam(3e-2)

        def total(params):
            args = hidden, boards, None, pyramid
            return head.apply({"params": params}, *args, method="loss")[0][:, 1:].sum(1).mean()

        def step(carry, _):
            params, state = carry
            value, grads = jax.value_and_grad(total)(params)
            updates, state = optimizer.update(grads, state)
            return (optax.apply_updates(params, updates), state), value

        run = jax.jit(lambda carry: jax.lax.scan(step, carry, length=300))
        (params, _), losses = run((params, optimizer.init(params)))
        levels = jnp.broadcast_to(hidden[:1, 1:], (256, 4, WIDTH))
        args = (levels,), (1.0,), keys(256), ALL.at(1, pyramid)
        tokens = jax.jit(lambda p: head.apply({"params": p}, *args, method="sample")[0])(params)
        ways = (np.asarray(tokens)[:, None] == np.asarray(boards)[:, 1:]).all(-1)
        return losses[-1], ways.mean(0)

    apart, drawn = trained(PLAIN)
    np.testing.assert_allclose(apart, np.log(16), rtol=1e-2)
    assert drawn.sum() < 0.25  # 2 of 16 ways.
    together, drawn = trained(make_head(pyramid=pyramid))
    np.testing.assert_allclose(together, np.log(2), rtol=2e-2)
    assert drawn.sum() > 0.97 and np.abs(drawn - 0.5).max() < 0.1


def test_operations_are_those_of_the_program():
    head = make_head()
    hidden = jnp.zeros((1, PYRAMID.length, WIDTH))
    traced = jax.jit(head.apply).trace({"params": params_of(head)}, hidden)
    assert head.flops(PYRAMID.length) == pytest.approx(program_flops(traced.jaxpr), rel=1e-6)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="one code for each token, not bits"):
        make_head().clone(target=Field("bits", (4,), num_values=2))
    with pytest.raises(ValueError, match="max_side is 1"):
        make_head(max_side=1)
    with pytest.raises(ValueError, match="3 heads for a width of 8"):
        make_head(num_heads=3)
    with pytest.raises(ValueError, match="depth 0"):
        make_head(depth=0)


def test_the_full_size_config_builds():
    config = load("family/refiner", "d16")
    build.check_config(config)
    network = build.network(config)
    params = sharding.unbox(jax.eval_shape(network.init_params, jax.random.key(0)))
    size = sum(x.size for x in jax.tree.leaves(params["head"]["refiner"]))
    # Two blocks of 12 C^2, the map of state and embedding, the embeddings; the rest are vectors.
    assert size == pytest.approx((24 + 2) * 1024**2 + 4097 * 1024, rel=2e-3)
    assert build.decoder(config).sampling == CategoricalSampling(1100, 0.0)
