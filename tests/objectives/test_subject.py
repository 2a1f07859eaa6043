"""A class more: what is drawn of its kind, and what it costs to forget it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recipes import load
from small_network import CODEC, PYRAMID, codec_params, filled, model
from test_contrastive import TOKENIZER, assert_close, largest

from var_jax import build
from var_jax.decoding.guidance import LinearGuidance
from var_jax.decoding.next_scale import NextScale
from var_jax.heads.categorical import CategoricalSampling
from var_jax.objectives.base import split_keys
from var_jax.objectives.divergence import divergence
from var_jax.objectives.level_weights import LeadingWeights, UniformWeights
from var_jax.objectives.subject import SubjectTuning

NETWORK, PARAMS = model(depth=1)
OTHER = filled(NETWORK.init_params, 5)
WEIGHTS = LeadingWeights(levels=2)
OBJECTIVE = SubjectTuning(NETWORK, TOKENIZER, weights=WEIGHTS, prior_class=2, top_k=8, top_p=0.0)
TOKENS = np.random.default_rng(1).integers(0, CODEC.vocab_size, (3, PYRAMID.length))
BATCH = {"label": jnp.array([0, 1, 0], jnp.int32), "tokens": jnp.asarray(TOKENS, jnp.int32)}
KEYS = jax.vmap(jax.random.key)(jnp.arange(3))
FROZEN = jax.tree.map(jnp.asarray, {"tokenizer": {"codec": codec_params()}, "reference": PARAMS})


def step(params, **settings):
    objective = dataclasses.replace(OBJECTIVE, **settings)

    @jax.jit
    def run(params):
        return jax.value_and_grad(objective.loss, has_aux=True)(params, FROZEN, (), BATCH, KEYS, 0)

    (value, aux), grads = jax.device_get(run(params))
    return value, aux.metrics, grads


@jax.jit
def drawn():
    return OBJECTIVE.draw(FROZEN, OBJECTIVE.drawn_labels(KEYS), KEYS)


def test_other_images_are_those_that_the_starting_model_draws():
    decoder = NextScale(LinearGuidance(OBJECTIVE.cfg), CategoricalSampling(8, 0.0))

    @jax.jit
    def plainly():
        labels = jnp.full(3, 2, jnp.int32)
        codec = FROZEN["tokenizer"]["codec"]
        return decoder(NETWORK, PARAMS, CODEC, codec, labels, KEYS).targets

    np.testing.assert_array_equal(drawn(), plainly())
    assert len({row.tobytes() for row in np.asarray(drawn())}) == 3


def test_any_known_class_is_drawn():
    keys = jax.random.split(jax.random.key(0), 60)
    anything = dataclasses.replace(OBJECTIVE, prior_class=None)
    assert set(np.asarray(anything.drawn_labels(keys))) == {0, 1, 2}
    known = dataclasses.replace(anything, known_classes=2)
    assert set(np.asarray(known.drawn_labels(keys))) == {0, 1}
    assert set(np.asarray(OBJECTIVE.drawn_labels(keys))) == {2}


def test_the_divergence_in_closed_form():
    @jax.jit
    def logits(params):
        codec = {"params": FROZEN["tokenizer"]["codec"]}
        lesson = CODEC.apply(codec, drawn(), method="lesson")
        hidden, _ = NETWORK.hidden(params, lesson.inputs, jnp.full(3, 2, jnp.int32))
        head = params["head"]["projection"]
        return jax.nn.log_softmax(hidden @ head["kernel"] + head["bias"])

    before, after = np.asarray(logits(PARAMS)), np.asarray(logits(OTHER))
    expected = (np.exp(before) * (before - after)).sum(-1).mean()
    found = jax.jit(OBJECTIVE.divergence)(OTHER, FROZEN, drawn(), jnp.full(3, 2))
    assert found == pytest.approx(expected, rel=1e-4) and found > 0.1
    # Of one coin against another.
    coins = jnp.log(jnp.array([[0.5, 0.5], [0.25, 0.75]]))
    assert divergence(*coins) == pytest.approx(np.log(2 / 3**0.5), rel=1e-5)


def test_at_the_start_the_divergence_is_0_and_has_no_gradient():
    value, metrics, grads = step(PARAMS)
    plain, _, free = step(PARAMS, prior_weight=0.0)
    assert metrics["prior_divergence"] == pytest.approx(0, abs=1e-6)
    assert value == pytest.approx(plain, rel=1e-6)
    assert_close(grads, free, largest(free))
    assert step(OTHER)[0] > step(OTHER, prior_weight=0.0)[0] + 0.01
    assert "reference" not in dataclasses.replace(OBJECTIVE, prior_weight=0.0).frozen_parts()


def test_coarse_levels_count_more():
    weights = WEIGHTS.weights(PYRAMID)
    expected = np.repeat([1, 1, 0.5], PYRAMID.sizes) / PYRAMID.length
    np.testing.assert_allclose(weights, expected)
    np.testing.assert_allclose(
        LeadingWeights(3).weights(PYRAMID), UniformWeights().weights(PYRAMID)
    )
    found, _, _ = step(OTHER, prior_weight=0.0)
    keys = split_keys(KEYS, 3)[0]
    tokens, _ = jax.jit(OBJECTIVE.likelihood.per_token)(OTHER, FROZEN, BATCH, keys)
    assert found == pytest.approx((np.asarray(tokens) @ weights).mean(), rel=1e-5)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="has the class 7; the model's are 0..2"):
        dataclasses.replace(OBJECTIVE, prior_class=7)
    config = load("family/refiner", "smallest")
    with config.unlocked():
        config.train.objective = "subject"
    loaded = build.LoadedTokenizer(build.tokenizer(config), None, "", config)
    with pytest.raises(ValueError, match="RefinerHead does not give; choose model.head"):
        build.objective(config, loaded, False)


@pytest.mark.parametrize("variant", ["", "smallest", "d16", "d20", "d24", "d30"])
def test_every_variant_builds(variant):
    config = load("family/subject", variant)
    build.check_config(config)
    config.model.num_classes = config.model.num_classes or 1001
    loaded = build.LoadedTokenizer(build.tokenizer(config), None, "", config)
    made = build.objective(config, loaded, False)
    assert isinstance(made, SubjectTuning) and made.prior_weight == 0.5
