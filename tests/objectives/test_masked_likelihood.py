"""The masked branch: what it reads, what of a network it trains, and what it starts from."""

import functools

import jax
import jax.numpy as jnp
import methods
import numpy as np
import pytest
from small_network import CLASSES, CODE_DIM, CODEC, PYRAMID, VOCAB, codec_params, filled

from var_jax import build
from var_jax.build.sections import ConfigError
from var_jax.context import BlockCausal, OwnScale
from var_jax.heads.categorical import CategoricalHead
from var_jax.network import Network
from var_jax.objectives.masked import MaskedLikelihood
from var_jax.parallel import sharding
from var_jax.tokenizer.vqvae import VQVAE
from var_jax.train import optim
from var_jax.train.state import create
from var_jax.train.step import make_train_step
from var_jax.transformer.masked_branch import MaskedBranch
from var_jax.transformer.var import VAR

TOKENIZER = VQVAE(CODEC, 1, 8, (1,), 1, False, norm_groups=4)
WIDTH, BATCH = 32, 2
FROZEN = {"tokenizer": {"codec": codec_params()}}


OWN_SCALE = OwnScale()


def transformer(context=OWN_SCALE, **settings):
    return VAR(PYRAMID, CLASSES, CODE_DIM, 2, WIDTH, 2, context=context, **settings)


def network(depth=1, **settings):
    var = transformer(**settings)
    return Network(var, CategoricalHead(VOCAB, WIDTH), MaskedBranch(var, depth))


@functools.cache
def params():
    return filled(network().init_params, 0)


def batch(size=BATCH):
    rng = np.random.default_rng(1)
    tokens = rng.integers(0, VOCAB, (size, PYRAMID.length))
    return {
        "tokens": jnp.asarray(tokens, jnp.int32),
        "label": jnp.arange(size) % CLASSES,
        "index": jnp.arange(size, dtype=jnp.uint32),
    }


def rows(seed):
    shape = (BATCH, PYRAMID.length, CODE_DIM)
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@functools.partial(jax.jit, static_argnames="made")
def hidden(own, masked, params, made):
    masked = jnp.broadcast_to(masked, own.shape[:2])
    shared = params["transformer"]
    return made.masked.hidden(params["masked"], shared, rows(0), own, masked, batch()["label"])


@pytest.mark.parametrize("depth, shared_adaln", [(1, False), (2, False), (1, True)])
def test_without_own_codes_a_new_branch_is_its_transformer(depth, shared_adaln):
    made = network(depth, shared_adaln=shared_adaln)
    given = filled(made.init_params, 3)
    branch = made.masked.start_from(given["transformer"], 0)
    assert np.abs(branch["mask_embedding"]).max() > 0
    shapes = [jax.tree.map(np.shape, x) for x in ({**branch, "head": 0}, given["masked"])]
    assert {**shapes[0], "head": 0} == {**shapes[1], "head": 0}
    found = hidden(
        jnp.zeros_like(rows(0)), False, {**given, "masked": {**branch, "head": {}}}, made
    )
    expected, _ = jax.jit(made.hidden)(given, rows(0), batch()["label"])
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_a_masked_token_reads_no_code_of_its_own_and_its_level_reads_the_others():
    masked = np.zeros(PYRAMID.length, bool)
    at, known = PYRAMID.offsets[1], PYRAMID.offsets[1] + 1
    masked[at] = True
    before = hidden(rows(1), masked, params(), network())
    np.testing.assert_array_equal(
        hidden(rows(1).at[:, at].add(1.0), masked, params(), network()), before
    )
    after = hidden(rows(1).at[:, known].add(1.0), masked, params(), network())
    moved = np.abs(after - before).max((0, 2)) > 1e-6
    np.testing.assert_array_equal(moved, PYRAMID.level_ids == 1)
    # Nothing of level 0 can be masked.
    every = np.ones(PYRAMID.length, bool)
    first = [hidden(rows(1), mask, params(), network())[:, 0] for mask in (every, ~every)]
    np.testing.assert_array_equal(*first)


def test_a_step_masks_one_share_of_every_level():
    objective = MaskedLikelihood(network(), TOKENIZER, seed=3)
    masks = np.asarray(jax.jit(jax.vmap(objective.draw_mask))(jnp.arange(200)))
    counts = np.stack([part.sum(1) for part in PYRAMID.split(masks)], 1)
    assert not counts[:, 0].any() and counts[:, 1:].min() >= 1
    assert {*counts[:, 1]} == {1, 2, 3, 4} and len({*counts[:, 2]}) == 16
    # ceil(4 p) and ceil(16 p) of one p.
    np.testing.assert_array_equal(counts[:, 1], -(-counts[:, 2] // 4))
    assert masks[:, 1:].any(0).all() and (masks[0] != masks[1]).any()
    other = MaskedLikelihood(network(), TOKENIZER, seed=4).draw_mask(0)
    assert (np.asarray(other) != masks[0]).any()


def test_only_the_branch_trains_and_the_rest_stays_to_the_bit():
    objective = MaskedLikelihood(network(), TOKENIZER)
    optimizer = optim.make_optimizer(optim.OptimizerConfig(1e-2, clip_norm=0.0), 9)
    step = jax.jit(make_train_step(objective, optimizer, ema_decay=0.9, trained=objective.trains))
    shapes = jax.eval_shape(
        lambda key: sharding.unbox(create(objective, optimizer, key, True, objective.trains)),
        jax.random.key(0),
    )
    state = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    state = state.replace(params=params(), ema=params())
    assert len(jax.tree.leaves(state.opt_state)) == 1 + 2 * len(jax.tree.leaves(params()["masked"]))
    losses = []
    for _ in range(3):
        state, metrics = step(state, FROZEN, batch())
        losses.append(float(metrics["loss"]))
    for name in ("transformer", "head"):
        jax.tree.map(np.testing.assert_array_equal, state.params[name], params()[name])
        jax.tree.map(np.testing.assert_array_equal, state.ema[name], params()[name])
    moved = jax.tree.map(
        lambda a, b: bool((a != b).any()), state.params["masked"], params()["masked"]
    )
    assert all(jax.tree.leaves(moved)) and np.ptp(losses) > 0


def test_a_branch_that_is_not_there_or_sees_other_levels_is_refused():
    plain = Network(transformer(), CategoricalHead(VOCAB, WIDTH))
    with pytest.raises(ValueError, match="give config.model.masked_blocks"):
        MaskedLikelihood(plain, TOKENIZER)
    with pytest.raises(ValueError, match="Level 1 sees the levels"):
        MaskedBranch(transformer(BlockCausal()), 1)
    with pytest.raises(ValueError, match="masked_blocks is 3, but the transformer has 2"):
        network(3)


def test_a_run_needs_a_transformer_and_takes_its_end_for_the_branch(tmp_path):
    given = methods.prepare(tmp_path, "family/hmar")
    with pytest.raises(ConfigError, match="trains a part .masked/\\*. of a network that is there"):
        build.transformer_experiment(methods.smallest("family/hmar_masked", given))
    given["train.initial_checkpoint"] = str(tmp_path / "model")
    found = build.transformer_experiment(methods.smallest("family/hmar_masked", given))
    started, before = found.initial_params, build.load_transformer(tmp_path / "model").params
    assert started["masked"]["mask_embedding"].any()
    for part, own in (("blocks", "transformer"), ("final_adaln", "transformer")):
        jax.tree.map(np.testing.assert_array_equal, started["masked"][part], before[own][part])
    jax.tree.map(np.testing.assert_array_equal, started["masked"]["head"], before["head"])
