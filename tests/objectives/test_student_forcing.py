"""Student forcing: FlexVAR's step without strength, and what the second pass reads and learns."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recipes import load
from small_network import CLASSES, filled

from var_jax import build
from var_jax.codecs.ground_truth_vq import GroundTruthVQ
from var_jax.codecs.residual_vq import ResidualVQ
from var_jax.heads.categorical import CategoricalHead
from var_jax.network import Network
from var_jax.objectives.curriculum import TrainedLevels
from var_jax.objectives.likelihood import Likelihood
from var_jax.objectives.student_forcing import StudentForcing
from var_jax.pyramid import ScalePyramid
from var_jax.tokenizer.vqvae import VQVAE
from var_jax.transformer.resized_positions import ResizedPositions
from var_jax.transformer.var import VAR

PYRAMID = ScalePyramid.from_patch_nums((1, 2, 4))
WIDTH, VOCAB, DIM, BATCH = 32, 32, 4, 3
CODEC = GroundTruthVQ(PYRAMID, VOCAB, DIM)
NETWORK = Network(
    VAR(PYRAMID, CLASSES, DIM, 2, WIDTH, 2, positions=ResizedPositions(WIDTH)),
    CategoricalHead(VOCAB, WIDTH, init_factor=20.0),
)


def tokenizer(codec=CODEC):
    return VQVAE(codec, 1, 8, (1,), 1, False, norm_groups=4)


def frozen(codec=CODEC):
    params = filled(tokenizer(codec).init_params, 9)["codec"]
    return {"tokenizer": {"codec": jax.tree.map(jnp.asarray, params)}}


FROZEN = frozen()


@functools.cache
def params():
    return filled(NETWORK.init_params, 0)


def batch():
    features = np.random.default_rng(1).normal(size=(BATCH, 4, 4, DIM))
    return {"features": jnp.asarray(features, jnp.float32), "label": jnp.arange(BATCH) % CLASSES}


def keys():
    return jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(0)))(jnp.arange(BATCH))


def objective(**settings):
    return StudentForcing(NETWORK, tokenizer(), **settings)


@functools.partial(jax.jit, static_argnums=0)
def gradient(made, params):
    def value(params):
        return made.loss(params, FROZEN, (), batch(), keys(), 0)[0]

    return jax.value_and_grad(value)(params)


@pytest.mark.slow
def test_strength_times_one_more_loss_is_added():
    """Without strength it is FlexVAR's step, value and gradient; and the rest is linear in it."""
    plain = gradient(Likelihood(NETWORK, tokenizer()), params())
    none, some, double = (gradient(objective(strength=s), params()) for s in (0.0, 0.5, 1.0))
    jax.tree.map(np.testing.assert_array_equal, none, plain)
    assert double[0] - some[0] > 0.1

    def check(a, b, c):
        np.testing.assert_allclose(np.asarray(c) - b, np.asarray(b) - a, atol=2e-4)

    jax.tree.map(check, none, some, double)


@pytest.mark.parametrize("kind", [GroundTruthVQ, ResidualVQ])
def test_after_true_levels_it_reads_what_the_teacher_gives(kind):
    codec = kind(PYRAMID, VOCAB, DIM)
    made = StudentForcing(NETWORK, tokenizer(codec))
    variables = {"params": frozen(codec)["tokenizer"]["codec"]}
    source = codec.apply(variables, batch()["features"], method="read")
    lesson = codec.apply(variables, source, method="lesson")
    level = PYRAMID.level(1)
    found = made.student_inputs(frozen(codec), lesson, lesson.targets[:, level])
    np.testing.assert_allclose(found, lesson.inputs[:, PYRAMID.level(2)], rtol=1e-5, atol=1e-5)
    other = (lesson.targets[:, level] + 1) % VOCAB
    assert np.abs(made.student_inputs(frozen(codec), lesson, other) - found).max() > 0.1


def test_the_second_pass_is_of_the_last_level_after_the_most_likely_codes():
    """By hand: greedy codes of level 1, read by level 2, compared with its own greedy codes."""
    plain = Likelihood(NETWORK, tokenizer())

    @functools.partial(jax.jit, static_argnums=1)
    def run(params, targets):
        forced = plain.forward(params, FROZEN, batch())
        made = objective(targets=targets)
        args = (params, FROZEN, batch(), forced.lesson, forced.hidden, None)
        return forced, made.student_loss(*args)

    forced, predicted = run(params(), "predictions")
    _, true = run(params(), "codes")
    variables = {"params": params()["head"]}
    best = NETWORK.head.apply(variables, forced.hidden).argmax(-1)
    codes = {"params": FROZEN["tokenizer"]["codec"]}
    drawn = best[:, PYRAMID.level(1)]
    _, inputs = CODEC.apply(codes, None, 1, drawn, PYRAMID, method="advance")
    ends = ScalePyramid.from_patch_nums((1, 4))
    inputs = jnp.concatenate([jnp.zeros((BATCH, 1, DIM)), inputs], 1)
    hidden, _ = NETWORK.hidden(params(), inputs, batch()["label"], pyramid=ends)
    log_p = jax.nn.log_softmax(NETWORK.head.apply(variables, hidden)[:, 1:])
    for found, targets in (
        (predicted, best[:, PYRAMID.level(2)]),
        (true, forced.lesson.targets[:, PYRAMID.level(2)]),
    ):
        expected = -np.take_along_axis(np.asarray(log_p), np.asarray(targets)[..., None], -1)
        assert float(found) == pytest.approx(expected.mean(), rel=1e-4)
    assert abs(float(predicted) - float(true)) > 0.1


def test_it_follows_the_schedule_of_the_step():
    short = TrainedLevels(ScalePyramid.from_patch_nums((1, 3), PYRAMID.grid))
    value, _ = gradient(objective(trained=short, strength=1.0), params())
    assert np.isfinite(value) and value != gradient(objective(strength=1.0), params())[0]


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="Unknown targets 'truth'"):
        objective(targets="truth")
    with pytest.raises(ValueError, match="give two levels or more"):
        objective(trained=TrainedLevels(PYRAMID.prefix(1)))
    with pytest.raises(ValueError, match="trains all levels"):
        dataclasses.replace(objective(), trained=TrainedLevels(PYRAMID, levels=range(2)))


@pytest.mark.parametrize("variant", ["", "smallest", "d16", "d24"])
def test_the_variants_are_known(variant):
    config = load("family/sar", variant)
    build.check_config(config)
