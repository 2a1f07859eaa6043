"""Distillation in closed form, and as a run that learns from a checkpoint."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recipes import load
from small_network import CODEC, PYRAMID, codec_params, model, network
from test_contrastive import TOKENIZER, assert_close, largest
from untrained import write_model

from var_jax import build
from var_jax.build.sections import ConfigError
from var_jax.heads.categorical import CategoricalHead
from var_jax.objectives.distillation import Distillation, Teacher
from var_jax.objectives.divergence import divergence
from var_jax.objectives.likelihood import Likelihood
from var_jax.pyramid import ScalePyramid

STUDENT, PARAMS = model(depth=1)
TEACHER, TAUGHT = model(depth=2)
OBJECTIVE = Distillation(STUDENT, TOKENIZER, Teacher(TEACHER, lambda: TAUGHT))
TOKENS = np.random.default_rng(1).integers(0, CODEC.vocab_size, (3, PYRAMID.length))
BATCH = {"label": jnp.array([0, 1, 2], jnp.int32), "tokens": jnp.asarray(TOKENS, jnp.int32)}
KEYS = jax.vmap(jax.random.key)(jnp.arange(3))
CODEC_PARAMS = {"tokenizer": {"codec": codec_params()}}


def step(params, taught=TAUGHT, **settings):
    objective = dataclasses.replace(OBJECTIVE, **settings)

    @jax.jit
    def run(params, frozen):
        return jax.value_and_grad(objective.loss, has_aux=True)(params, frozen, (), BATCH, KEYS, 0)

    (value, aux), grads = jax.device_get(run(params, {**CODEC_PARAMS, "teacher": taught}))
    return value, aux.metrics, grads


def test_the_loss_in_closed_form():
    """From the last level on, at a temperature."""
    likelihood = Likelihood(STUDENT, TOKENIZER)

    @jax.jit
    def parts(params, teacher):
        forced = likelihood.forward(params, CODEC_PARAMS, BATCH, KEYS)
        hidden, _ = TEACHER.hidden(teacher, forced.lesson.inputs, BATCH["label"])
        logits = []
        for p, x in ((teacher, hidden), (params, forced.hidden)):
            head = p["head"]["projection"]
            logits.append(x @ head["kernel"] + head["bias"])
        return *logits, likelihood.score(params, forced)[0]

    wanted, found, own = map(np.asarray, parts(PARAMS, TAUGHT))
    p, q = (np.asarray(jax.nn.log_softmax(x / 2.0)) for x in (wanted, found))
    apart = 4 * (np.exp(p) * (p - q)).sum(-1)
    last = PYRAMID.level(2)
    expected = (0.3 * apart + 0.7 * own)[:, last].sum(-1).mean() / PYRAMID.length
    value, metrics, _ = step(PARAMS, alpha=0.3, temperature=2.0, first_level=2)
    assert value == pytest.approx(expected, rel=1e-4)
    assert metrics["divergence_last"] == pytest.approx(apart[:, last].mean(), rel=1e-4)


def test_without_a_share_it_is_the_likelihood():
    value, _, grads = step(PARAMS, alpha=0.0)

    @jax.jit
    def plain(params):
        return jax.grad(Likelihood(STUDENT, TOKENIZER).loss, has_aux=True)(
            params, CODEC_PARAMS, (), BATCH, KEYS, 0
        )[0]

    expected = jax.device_get(plain(PARAMS))
    assert_close(grads, expected, largest(expected))
    assert value > 0


def test_who_is_the_teacher_has_nothing_to_learn():
    """Without dropout of the class, which the teacher does not have."""
    transformer = STUDENT.transformer.clone(class_drop_rate=0.0)
    same = dataclasses.replace(STUDENT, transformer=transformer)
    objective = dict(network=same, teacher=Teacher(same, lambda: PARAMS), alpha=1.0)
    value, metrics, grads = step(PARAMS, PARAMS, **objective)
    assert value == pytest.approx(0, abs=1e-6) and metrics["loss_mean"] > 1
    assert largest(grads) < 1e-4


def test_the_divergence_of_coins():
    coins = jnp.log(jnp.array([[0.5, 0.5], [0.25, 0.75]]))
    assert divergence(*coins) == pytest.approx(np.log(2 / 3**0.5), rel=1e-5)
    assert divergence(*(2 * coins), temperature=2.0) == pytest.approx(
        4 * np.log(2 / 3**0.5), rel=1e-5
    )


def test_mistakes_are_named():
    def refused(match, other=TEACHER, **settings):
        with pytest.raises(ValueError, match=match):
            dataclasses.replace(OBJECTIVE, teacher=Teacher(other, dict), **settings)

    refused(
        r"The teacher has the levels \(\(1, 1\), \(3, 3\)\)",
        network(pyramid=ScalePyramid.from_patch_nums((1, 3))),
    )
    refused("the codes 7, the model 32", dataclasses.replace(TEACHER, head=CategoricalHead(7, 32)))
    refused("the number of classes 4, the model 3", network(classes=4))
    refused("first_level is 3; give one of 0..2", first_level=3)
    refused("alpha is 1.5", alpha=1.5)
    config = load("family/refiner", "smallest")
    refused("RefinerHead does not give; choose model.head", build.network(config))


def test_a_run_learns_from_a_checkpoint(tmp_path):
    teacher = write_model(tmp_path / "teacher")
    config = load("family/distillation", "smallest")
    loaded = build.load_tokenizer(teacher / "tokenizer")
    unnamed = build.objective(config, loaded, False)
    with pytest.raises(ConfigError, match="objective.teacher is empty; give the workdir"):
        unnamed.frozen_parts()["teacher"].load()
    config.train.objective.teacher = str(teacher / "tokenizer")
    with pytest.raises(ConfigError, match="which holds a tokenizer; give the workdir of a trans"):
        build.objective(config, loaded, False)
    config.train.objective.teacher = str(teacher)
    with pytest.raises(ConfigError, match="the run speaks to beef; give a transformer of the same"):
        build.objective(config, dataclasses.replace(loaded, fingerprint="beef"), False)
    made = build.objective(config, loaded, False)
    params, _ = build.load_params(teacher, "transformer", None)
    jax.tree.map(np.testing.assert_array_equal, made.frozen_parts()["teacher"].load(), params)
    assert str(teacher) in build.data_paths(config, cached=True)


@pytest.mark.parametrize("variant", ["", "smallest", "d16"])
def test_every_variant_is_known(variant):
    config = load("family/distillation", variant)
    build.check_config(config)
    assert build.network(config).transformer.depth == {"": 2, "smallest": 1, "d16": 16}[variant]
