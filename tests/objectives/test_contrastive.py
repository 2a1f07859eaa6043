"""Condition contrastive alignment in closed form, and as a run that keeps its reference."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recipes import load
from small_network import CODEC, PYRAMID, codec_params, filled, model
from untrained import write_model

from var_jax import build
from var_jax.checkpoint import Checkpointer
from var_jax.objectives.contrastive import Contrastive
from var_jax.parallel import sharding
from var_jax.tokenizer.vqvae import VQVAE
from var_jax.train.metrics import read_metrics

LABELS = jnp.array([0, 0, 1, 2, 1, 1, 2, 0], jnp.int32)
TOKENIZER = VQVAE(CODEC, 1, 8, (1,), 1, False, norm_groups=4)
OBJECTIVE = Contrastive(model()[0], TOKENIZER, beta=0.1, negative_weight=3.0)


def batch():
    tokens = np.random.default_rng(1).integers(0, CODEC.vocab_size, (8, PYRAMID.length))
    return {"label": LABELS, "tokens": jnp.asarray(tokens, jnp.int32)}


def keys():
    return jax.vmap(jax.random.key)(jnp.arange(8))


def evaluate(params, reference, **settings):
    objective = dataclasses.replace(OBJECTIVE, **settings)

    @jax.jit
    def run(params, frozen, batch, keys):
        return jax.value_and_grad(objective.loss, has_aux=True)(params, frozen, (), batch, keys, 0)

    frozen = {"tokenizer": {"codec": codec_params()}, "reference": reference}
    (value, aux), grads = run(params, frozen, batch(), keys())
    return float(value), jax.device_get(aux.metrics), jax.device_get(grads)


def nll(params, labels):
    """-log p of each example's tokens."""
    frozen = {"tokenizer": {"codec": codec_params()}}
    _, found = OBJECTIVE.likelihood.per_token(params, frozen, {**batch(), "label": labels})
    return found["loss"].sum(-1)


def assert_close(a, b, scale):
    def compare(x, y):
        assert np.abs(x - y).max() <= 1e-4 * scale

    jax.tree.map(compare, a, b)


def largest(tree):
    return max(np.abs(x).max() for x in jax.tree.leaves(tree))


def test_at_the_reference_loss_and_gradient_are_known():
    """All ratios are 1: log 2 a term, and half of beta times the gradient of the ratios."""
    params, rolled = model()[1], jnp.roll(LABELS, -1)
    value, metrics, grads = evaluate(params, params, null_rate=0.0)
    assert max(abs(metrics["gap"]), abs(metrics["gap_negative"])) < 1e-5
    assert value == pytest.approx(np.log(2) * (1 + 3.0), rel=1e-6)

    @jax.jit
    def slope(params):
        def ratios(params):
            return nll(params, LABELS).mean() - 3.0 * nll(params, rolled).mean()

        return jax.tree.map(lambda x: 0.05 * x, jax.grad(ratios)(params))

    expected = jax.device_get(slope(params))
    assert_close(grads, expected, largest(expected))
    # The reported likelihood is that of the tokens under their own condition.
    assert metrics["loss_mean"] == pytest.approx(
        float(nll(params, LABELS).mean()) / PYRAMID.length, rel=1e-5
    )
    dpo, _, _ = evaluate(params, params, form="dpo")
    linear, _, _ = evaluate(params, params, form="unlearning")
    assert dpo == pytest.approx(np.log(2), rel=1e-6) and abs(linear) < 1e-4


@pytest.mark.slow
def test_where_nothing_or_the_same_is_asked_for_an_example_is_its_own_positive():
    params = model()[1]
    # All null: both terms pull the same way, and lambda only divides.
    value, _, grads = evaluate(params, params, null_rate=1.0)
    assert value == pytest.approx(2 * np.log(2) / 3, rel=1e-6)
    null = jnp.full(8, OBJECTIVE.network.transformer.num_classes)
    expected = jax.jit(jax.grad(lambda p: 0.1 / 3 * nll(p, null).mean()))(params)
    assert_close(grads, jax.device_get(expected), largest(expected))
    # Three of eight neighbours (0 0, 1 1 and, around the end, 0 0) share a label.
    value, _, _ = evaluate(params, params, null_rate=1e-9)
    assert value == pytest.approx(np.log(2) * (1 + (3 + 5 * 3.0) / 8) / 3, rel=1e-6)


def test_devices_do_not_change_the_negatives():
    params, reference = model()[1], filled(model()[0].init_params, 5)
    value, metrics, _ = evaluate(params, reference)
    assert metrics["gap"] != metrics["gap_negative"]
    mesh = sharding.make_mesh()
    rows = sharding.batch_sharding(mesh)
    frozen = {"tokenizer": {"codec": codec_params()}, "reference": reference}
    args = jax.device_put((batch(), keys()), rows)
    found, aux = jax.jit(OBJECTIVE.loss)(params, frozen, (), *args, 0)
    assert float(found) == pytest.approx(value, rel=1e-5)
    assert float(aux.metrics["gap_negative"]) == pytest.approx(
        float(metrics["gap_negative"]), rel=1e-4
    )


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="Unknown form 'ddo'"):
        dataclasses.replace(OBJECTIVE, form="ddo")
    config = load("family/cca", "smallest")
    with config.unlocked():
        config.train.progressive = dict(until=0.5, first=0)
    module = build.tokenizer(config)
    with pytest.raises(ValueError, match="train.progressive is set, but .* 'cca', which does not"):
        build.objective(config, build.LoadedTokenizer(module, None, "", config), False)
    with config.unlocked():
        config.train.progressive, config.train.weights = {}, "sqrt_area"
    with pytest.raises(ValueError, match="train.weights is set, but .* 'cca', which does not"):
        build.objective(config, build.LoadedTokenizer(module, None, "", config), False)


@pytest.mark.parametrize("variant", ["", "smallest", "d16", "d20", "d24", "d30"])
def test_every_variant_builds(variant):
    config = load("family/cca", variant)
    build.check_config(config)
    module = build.tokenizer(config)
    made = build.objective(config, build.LoadedTokenizer(module, None, "", config), False)
    assert isinstance(made, Contrastive) and made.network.transformer.drop_path_rate == 0


def config_for(model_workdir, held_out=False):
    config = load("family/cca", "smallest")
    with config.unlocked():
        config.evaluation = dict(likelihood=held_out, samples_per_class=0)
    config.train.optimizer.learning_rate = 0.1
    config.tokenizer_checkpoint = str(model_workdir / "tokenizer")
    config.train.initial_checkpoint = str(model_workdir)
    config.train.log_every = 1
    config.train.save_every = 2
    return config


def params_of(workdir):
    with Checkpointer(workdir, read_only=True) as reader:
        params, metadata, step = reader.restore_params("params", as_numpy=True)
    return params, metadata, step


@pytest.mark.slow
def test_a_run_that_goes_on_elsewhere_finds_its_reference_in_its_workdir(tmp_path):
    start = write_model(tmp_path / "start")
    straight, stopped = str(tmp_path / "straight"), tmp_path / "stopped"
    with pytest.raises(ValueError, match="give --config.train.initial_checkpoint"):
        config = config_for(start)
        config.train.initial_checkpoint = ""
        build.run(config, straight, "transformer")
    assert build.run(config_for(start, held_out=True), straight, "transformer")
    assert not build.run(config_for(start), str(stopped), "transformer", lambda step: step == 2)

    initial, _, _ = params_of(start)
    kept, metadata, _ = params_of(stopped / "reference")
    jax.tree.map(np.testing.assert_array_equal, kept, initial)
    assert metadata["kind"] == "transformer"
    shutil.rmtree(start)
    config = config_for(start)
    config.tokenizer_checkpoint = str(stopped / "tokenizer")
    assert build.run(config, str(stopped), "transformer")
    (a, about, step), (b, _, _) = params_of(straight), params_of(stopped)
    assert step == 4 and about["reference_fingerprint"] == metadata["fingerprint"]
    jax.tree.map(np.testing.assert_array_equal, a, b)
    assert largest(jax.tree.map(np.subtract, a, initial)) > 0
    rows = read_metrics(straight)
    gaps = [row["gap"] for row in rows if "gap" in row]
    # The first step is at the reference.
    assert abs(gaps[0]) < 1e-5 and abs(gaps[-1]) > 1e-3
    assert np.isfinite([row["eval/loss_mean"] for row in rows if "eval/loss_mean" in row]).any()


def test_a_workdir_with_the_reference_of_another_run_is_refused(tmp_path):
    start = write_model(tmp_path / "start")
    folder = tmp_path / "run" / "reference"
    with Checkpointer(folder) as writer:
        writer.save(0, {"params": {"x": np.zeros(2)}}, {"kind": "transformer", "fingerprint": "f"})
    with pytest.raises(ValueError, match="reference holds another model than the one"):
        build.run(config_for(start), str(tmp_path / "run"), "transformer")
