"""DDO in closed form, and as a run on data and samples."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import methods
import numpy as np
import pytest
from small_network import CODEC, PYRAMID, codec_params, filled, model
from test_contrastive import assert_close, largest

from var_jax import build
from var_jax.checkpoint import fingerprint
from var_jax.data.token_cache import TokenCache
from var_jax.objectives.discriminative import Discriminative
from var_jax.tokenizer.vqvae import VQVAE

LABELS = jnp.array([0, 2, 1, 2], jnp.int32)
TOKENIZER = VQVAE(CODEC, 1, 8, (1,), 1, False, norm_groups=4)
OBJECTIVE = Discriminative(model()[0], TOKENIZER, alpha=3.0, beta=0.1, null_rate=0.0)
NOTHING = jnp.zeros(4, bool)


def tokens(seed):
    drawn = np.random.default_rng(seed).integers(0, CODEC.vocab_size, (4, PYRAMID.length))
    return jnp.asarray(drawn, jnp.int32)


BATCH = {"label": LABELS, "tokens": tokens(1), "samples": tokens(2)}
FROZEN = {"tokenizer": {"codec": codec_params()}}


@functools.partial(jax.jit, static_argnames="objective")
def evaluate(objective, params, reference):
    frozen, keys = {**FROZEN, "reference": reference}, jax.vmap(jax.random.key)(jnp.arange(4))
    return jax.value_and_grad(objective.loss, has_aux=True)(params, frozen, (), BATCH, keys, 0)


def test_at_the_reference_loss_and_gradient_are_known():
    params = model()[1]
    (value, aux), grads = evaluate(OBJECTIVE, params, params)
    assert value == pytest.approx((1 + 3.0) * np.log(2) / 3.0, rel=1e-6)
    assert abs(aux.metrics["gap"]) < 1e-5 and abs(aux.metrics["gap_samples"]) < 1e-5

    @jax.jit
    def slope(params):
        def nll(params, name):
            batch = {"label": LABELS, "tokens": BATCH[name]}
            return OBJECTIVE.likelihood.per_token(params, FROZEN, batch)[1]["loss"].sum(-1).mean()

        return jax.grad(lambda p: 0.05 / 3.0 * (nll(p, "tokens") - 3.0 * nll(p, "samples")))(params)

    expected = jax.device_get(slope(params))
    assert_close(jax.device_get(grads), expected, largest(expected))


def test_elsewhere_the_gaps_are_those_of_the_likelihoods():
    params, reference = model()[1], filled(model()[0].init_params, 5)
    (_, aux), _ = evaluate(OBJECTIVE, params, reference)

    @jax.jit
    def nll(params, tokens):
        batch = {"label": LABELS, "tokens": tokens}
        return OBJECTIVE.likelihood.per_token(params, FROZEN, batch)[1]["loss"].sum(-1).mean()

    for gap, name in (("gap", "tokens"), ("gap_samples", "samples")):
        expected = nll(reference, BATCH[name]) - nll(params, BATCH[name])
        assert aux.metrics[gap] == pytest.approx(float(expected), rel=1e-4)


def test_where_nothing_is_asked_for_there_are_no_samples():
    gap, of_samples = jnp.array([1.0, -2.0]), jnp.array([4.0, 5.0])
    some = OBJECTIVE.contrast(gap, of_samples, jnp.array([False, True]))

    def score(x):
        return -np.log1p(np.exp(-0.1 * x))

    expected = (score(1.0) + score(-2.0)) / 2 + 3.0 * score(-4.0) / 2
    assert some == pytest.approx(-expected / 3.0, rel=1e-6)
    every = dataclasses.replace(OBJECTIVE, alpha=0.5).contrast(gap, of_samples, ~NOTHING[:2])
    assert every == pytest.approx(-(score(1.0) + score(-2.0)) / 2, rel=1e-6)


def test_with_alpha_and_beta_1_the_data_s_distribution_is_stationary():
    """Three states, 6:3:1 in the data and 3:3:4 in the reference."""
    objective = dataclasses.replace(OBJECTIVE, alpha=1.0, beta=1.0)
    data, reference = np.array([0.6, 0.3, 0.1]), np.array([0.3, 0.3, 0.4])
    real, drawn = np.repeat(np.arange(3), [6, 3, 1]), np.repeat(np.arange(3), [3, 3, 4])

    def loss(logits):
        ratio = jax.nn.log_softmax(logits) - np.log(reference)
        return objective.contrast(ratio[real], ratio[drawn], jnp.zeros(10, bool))

    slope = jax.grad(loss)
    assert np.abs(slope(np.log(data))).max() < 1e-6
    assert np.abs(slope(np.log(reference))).max() > 0.1


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """An untrained model with tokens and its own samples; the keys of a config that name them."""
    folder = tmp_path_factory.mktemp("ddo")
    given = methods.prepare(folder, "family/ddo")
    start, samples = folder / "model", folder / "drawn"
    given["sample_cache"] = str(samples)
    draw = functools.partial(build.cache_samples, start, samples, samples_per_class=3, batch_size=8)
    draw()
    draw()  # Nothing is left to do.
    with pytest.raises(ValueError, match="holds a token cache with another seed"):
        draw(seed=1)
    return given


def test_samples_are_of_each_class_in_turn_and_of_one_model(given):
    cache = TokenCache(given["sample_cache"])
    records = cache.__getitems__(range(30))
    assert [record["label"] for record in records] == [*range(10)] * 3
    assert len({record["tokens"].tobytes() for record in records}) == 30
    start = given["train.initial_checkpoint"]
    params, _ = build.load_params(start, "transformer", None)
    assert cache.settings.extra["model"] == fingerprint(params)
    assert cache.settings.extra["sampling"] == {"cfg": 0.0, "top_k": 0, "top_p": 0}


def test_a_run_reads_examples_beside_samples_of_their_class(given):
    experiment = build.transformer_experiment(methods.smallest("family/ddo", given))
    batch = next(experiment.batches(0))
    cache = TokenCache(given["sample_cache"])
    of_label = {}
    for record in cache.__getitems__(range(30)):
        of_label.setdefault(record["label"], set()).add(record["tokens"].tobytes())
    for label, sample in zip(batch["label"], batch["samples"], strict=True):
        assert sample.astype("<u2").tobytes() in of_label[label]
    facts = experiment.metadata["data"]
    assert (facts["samples"], facts["samples_seed"]) == (30, 0)


def test_captions_of_the_examples_stay_behind(given, tmp_path):
    tokenizer = build.load_tokenizer(given["tokenizer_checkpoint"])
    config = tokenizer.config.copy_and_resolve_references()
    with config.unlocked():
        config.data.caption_length = 8
    methods.write_tokens(tmp_path, dataclasses.replace(tokenizer, config=config))
    config = methods.smallest("family/ddo", {**given, "token_cache": str(tmp_path)})
    batch = next(build.transformer_experiment(config).batches(0))
    assert batch.keys() == {"index", "label", "samples", "tokens"}


def test_samples_of_another_model_are_refused(given, tmp_path):
    tokenizer = build.load_tokenizer(given["tokenizer_checkpoint"])
    methods.write_samples(tmp_path, tokenizer, "another")
    config = methods.smallest("family/ddo", {**given, "sample_cache": str(tmp_path)})
    with pytest.raises(ValueError, match="are of the transformer another, .* starts from"):
        build.transformer_experiment(config)


@pytest.mark.parametrize(
    "method, changed, message",
    [
        ("family/ddo", {"sample_cache": ""}, "compares cached tokens with cached samples; give"),
        ("family/ddo", {"token_cache": ""}, "compares cached tokens with cached samples; give"),
        ("family/ddo", {"sample_cache": "train"}, "which launch.cache_samples did not write"),
        ("mnist5k", {}, "sample_cache is .* but .* reads no samples; leave it out"),
    ],
)
def test_mistakes_are_named(given, method, changed, message):
    if changed.get("sample_cache"):
        changed = {"sample_cache": f"{given['token_cache']}/train"}
    with pytest.raises(ValueError, match=message):
        build.transformer_experiment(methods.smallest(method, given | changed))
