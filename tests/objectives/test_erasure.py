"""Erasing a class: what is moved where, and what stays."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recipes import load
from small_network import CLASSES, CODEC, PYRAMID, codec_params, filled, model
from test_contrastive import TOKENIZER, assert_close, largest

from var_jax import build
from var_jax.objectives.erasure import Erasure, level_sums, open_levels

NETWORK, PARAMS = model(depth=1)
OTHER = filled(NETWORK.init_params, 5)
OBJECTIVE = Erasure(NETWORK, TOKENIZER, erased=(1,), threshold=0.0)
LABELS = np.array([0, 1, 2, 1])
TOKENS = np.random.default_rng(1).integers(0, CODEC.vocab_size, (4, PYRAMID.length))
BATCH = {"label": jnp.asarray(LABELS, jnp.int32), "tokens": jnp.asarray(TOKENS, jnp.int32)}
KEYS = jax.vmap(jax.random.key)(jnp.arange(4))
FROZEN = {"tokenizer": {"codec": codec_params()}}


@functools.cache
def step(**settings):
    """(parameters, those of the reference) -> value, metrics and gradient."""
    loss = dataclasses.replace(OBJECTIVE, **settings).loss

    @jax.jit
    def run(params, reference):
        frozen = {**FROZEN, "reference": reference}
        return jax.value_and_grad(loss, has_aux=True)(params, frozen, (), BATCH, KEYS, 0)

    def found(params, reference):
        (value, aux), grads = jax.device_get(run(params, reference))
        return value, aux.metrics, grads

    return found


@jax.jit
def hidden(params, labels):
    inputs = OBJECTIVE.likelihood.lesson(FROZEN, BATCH).inputs
    return NETWORK.hidden(params, inputs, jnp.asarray(labels, jnp.int32))[0]


def test_the_loss_in_closed_form():
    """Nothing is asked by chance, so the two examples of class 1 are moved and the others kept."""
    value, metrics, _ = step(rate=0.0, anchor=2, strength=0.5)(OTHER, PARAMS)
    anchor, nothing = hidden(PARAMS, [2] * 4), hidden(PARAMS, [CLASSES] * 4)
    erased = LABELS == 1
    moved = anchor - 0.5 * (hidden(PARAMS, LABELS) - nothing)
    target = np.where(erased[:, None, None], moved, hidden(PARAMS, LABELS))
    distance = np.square(hidden(OTHER, LABELS) - target).mean(-1)
    assert metrics["erased"] == pytest.approx(distance[erased].mean(), rel=1e-4)
    assert metrics["kept"] == pytest.approx(distance[~erased].mean(), rel=1e-4)
    assert value == pytest.approx(metrics["erased"] + metrics["kept"], rel=1e-5)
    assert metrics["levels_open"] == 1


def test_examples_that_show_no_erased_class_are_asked_for_one_too():
    """As published: all of them are, after their own coarser levels."""
    value, metrics, _ = step(rate=1.0)(OTHER, PARAMS)
    nothing = hidden(PARAMS, [CLASSES] * 4)
    target = nothing - (hidden(PARAMS, [1] * 4) - nothing)
    expected = np.square(hidden(OTHER, [1] * 4) - target).mean()
    assert value == pytest.approx(expected, rel=1e-4) and metrics["kept"] == 0


def test_what_need_not_move_has_no_loss():
    """A class that the reference knows no better than none, and a network that is the reference."""
    transformer = PARAMS["transformer"]
    table = np.array(transformer["class_embedding"])
    table[1] = table[CLASSES]
    blind = {**PARAMS, "transformer": {**transformer, "class_embedding": table}}
    value, _, grads = step(rate=0.5)(blind, blind)
    assert value < 1e-9
    assert largest(grads) < 1e-4
    # Where the class is known, the same network has a way to go, but for the kept examples.
    value, metrics, _ = step(rate=0.5)(PARAMS, PARAMS)
    assert value > 1e-2 and metrics["kept"] < 1e-9


def test_levels_that_are_near_enough_stand_still():
    sums = level_sums(jnp.arange(21.0), PYRAMID)
    np.testing.assert_allclose(sums, [0, 1 + 2 + 3 + 4, sum(range(5, 21))])
    np.testing.assert_allclose(open_levels(sums, 10.0), [0, 0, sums[2]])
    _, metrics, grads = step(rate=1.0, threshold=1e9)(OTHER, PARAMS)
    assert metrics["levels_open"] == 0 and metrics["erased"] > 0
    assert_close(grads, jax.tree.map(np.zeros_like, grads), 0)


def test_several_classes_are_asked_for_in_turn():
    objective = dataclasses.replace(OBJECTIVE, erased=(0, 2), rate=1.0)
    one = dataclasses.replace(OBJECTIVE, erased=(0,), rate=1.0)
    frozen = {**FROZEN, "reference": PARAMS}
    batch = {**BATCH, "label": jnp.ones(4, jnp.int32)}
    found = [jax.jit(o.loss)(OTHER, frozen, (), batch, KEYS, 0)[0] for o in (objective, one)]
    assert abs(found[0] - found[1]) > 1e-4


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="needs the classes to erase"):
        dataclasses.replace(OBJECTIVE, erased=())
    with pytest.raises(ValueError, match="has the class 3; the model's are 0..2"):
        dataclasses.replace(OBJECTIVE, erased=(3,))
    with pytest.raises(ValueError, match="class 1, is to be erased itself"):
        dataclasses.replace(OBJECTIVE, anchor=1)
    config = load("family/text", "smallest")
    with config.unlocked():
        config.train.objective = dict(kind="erasure", erased=(1,))
    loaded = build.LoadedTokenizer(build.tokenizer(config), None, "", config)
    with pytest.raises(ValueError, match="is asked by caption; choose a model of class labels"):
        build.objective(config, loaded, False)


@pytest.mark.parametrize("variant", ["", "smallest", "d16", "d20", "d24", "d30"])
def test_every_variant_builds(variant):
    config = load("family/erasure", variant)
    build.check_config(config)
    loaded = build.LoadedTokenizer(build.tokenizer(config), None, "", config)
    made = build.objective(config, loaded, False)
    assert isinstance(made, Erasure) and made.network.transformer.drop_path_rate == 0
