"""A method is one class on an axis and a config that names it: through training and sampling."""

import json

import numpy as np
import pytest
import untrained
from recipes import load

import var_jax
from var_jax import build
from var_jax.build import registry
from var_jax.build.sections import ConfigError
from var_jax.decoding.next_scale import NextScale
from var_jax.train.metrics import read_metrics


def toy_config():
    config = load("mnist5k", "smallest")
    config.unlock()
    for key in ("vocab_size", "code_dim", "phi_sharing"):
        del config.tokenizer[key]
    config.tokenizer.codec = dict(kind="toys:Signs", channels=3)
    config.model.depth = 2
    config.model.context = dict(kind="toys:SelfAndFirst", first=1)
    config.model.conditioner = "toys:Parity"
    config.model.positions = "toys:Corners"
    config.model.mixer = dict(kind="toys:Decay", rate=0.7)
    config.model.head = "toys:Coins"
    config.train.weights = dict(kind="toys:LastLevel", share=0.5)
    config.train.curriculum = "toys:Alternating"
    config.train.objective = dict(kind="toys:Penalised", strength=0.01)
    config.train.log_every = 1
    config.sampling = dict(
        cfg=0.0,
        bias=(0.0, 0.0, 0.5, 0.0),
        decoder="toys:Unguided",
        cache_policy=dict(kind="toys:Forgetful", keep=2),
    )
    return config


@pytest.mark.slow
def test_a_resident_of_each_axis_trains_and_draws_from_its_config_alone(tmp_path):
    config = toy_config()
    build.check_config(config)
    config.tokenizer_checkpoint = str(
        untrained.write_model(tmp_path / "model", config) / "tokenizer"
    )
    # An objective with a reference says that it needs one.
    with pytest.raises(ValueError, match="initial_checkpoint"):
        build.run(config.copy_and_resolve_references(), str(tmp_path / "no"), "transformer")
    start = config.copy_and_resolve_references()
    del start.train.objective, start.train.curriculum
    start.evaluation = dict(likelihood=False, samples_per_class=0)
    start.train.num_steps = 2
    assert build.run(start, str(tmp_path / "start"), "transformer")
    config.train.initial_checkpoint = str(tmp_path / "start")
    config.evaluation = dict(samples_per_class=0)
    assert build.run(config, str(tmp_path / "run"), "transformer")
    lines = [m for m in read_metrics(tmp_path / "run") if "distance" in m]
    assert lines[0]["distance"] == 0 and lines[-1]["distance"] > 0
    # Every other step has no last level.
    assert [sum(k.startswith("loss_level") for k in m) for m in lines] == [4, 3, 4, 3]

    model = var_jax.load(tmp_path / "run")
    images = model.sample([3, 1, 2], seed=0)
    assert images.shape == (3, 32, 32, 1) and len({x.tobytes() for x in images}) == 3
    signs = model.encode(images)
    assert signs.shape == (3, 37, 3) and set(np.unique(signs)) == {0, 1}
    assert model.decode(signs).shape == images.shape
    assert np.isfinite(model.log_likelihood(images, [3, 1, 2])).all()


def test_processors_change_the_logits(tmp_path):
    untrained.write_model(tmp_path)
    model = var_jax.load(tmp_path)
    labels = np.arange(10)
    tokens = sampled_tokens(model, labels, [])
    banned = int(np.bincount(tokens.reshape(-1)).argmax())
    without = sampled_tokens(model, labels, [dict(kind="toys:Never", token=banned)])
    assert banned in tokens and banned not in without


def sampled_tokens(model, labels, processors):
    from var_jax.decoding.images import ImageSampler

    config = model.transformer.config.copy_and_resolve_references()
    with config.unlocked(), config.ignore_type():
        config.sampling.update(cfg=0.0, top_k=1, processors=tuple(processors))
    decoder = build.decoder(config)
    assert isinstance(decoder, NextScale)
    loaded, tokenizer = model.transformer, model.tokenizer
    parts = (loaded.network, tokenizer.module, tokenizer.params, decoder, model.mesh)
    sampler = ImageSampler(*parts)
    return sampler(loaded.params, labels, 0, np.arange(len(labels))).tokens


@pytest.mark.parametrize("axis", registry.METHODS)
def test_every_registered_kind_can_be_imported(axis):
    for kind in registry.METHODS[axis]:
        assert callable(registry.find(axis, kind, "config"))


@pytest.mark.parametrize(
    "section, axis, value, message",
    [
        ("model", "head", "categorial", "did you mean 'categorical'"),
        ("model", "head", dict(kind="categorical", smoothing=0.1), "unknown key 'smoothing'"),
        ("model", "context", dict(first=1), "needs a kind"),
        ("train", "weights", "nowhere:Class", "cannot be imported"),
        ("sampling", "decoder", "next", "config.sampling.decoder.kind is 'next'"),
        ("tokenizer", "codec", dict(kind="residual_vq", beta="x"), "must be a number"),
    ],
)
def test_mistakes_are_named_before_anything_is_built(section, axis, value, message):
    config = load("mnist5k", "smallest")
    with config.unlocked(), config.ignore_type():
        if section == "tokenizer":
            for key in ("vocab_size", "code_dim", "phi_sharing"):
                del config.tokenizer[key]
        config[section][axis] = value
    with pytest.raises(ConfigError, match=message):
        build.check_config(config)


def test_a_run_says_what_differs_in_a_kind():
    old, new = load("mnist5k", "smallest"), load("mnist5k", "smallest")
    with new.unlocked():
        new.model.head = dict(kind="categorical", label_smoothing=0.1)
    found = {change.path: (change.before, change.now) for change in build.changes(
        json.loads(json.dumps(old.to_dict())), new, "transformer")}  # fmt: skip
    assert found["config.model.head.kind"] == (None, "categorical")
    assert found["config.model.head.label_smoothing"] == (0.0, 0.1)
