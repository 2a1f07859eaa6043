"""A class more from a few pictures in a folder, and the labels of its data."""

import pickle

import jax
import numpy as np
import pytest
from PIL import Image
from recipes import load
from untrained import write_model

import var_jax
from var_jax import build
from var_jax.build.sections import ConfigError
from var_jax.data import sources
from var_jax.data.after_known import AfterKnown


@pytest.fixture
def config(tmp_path):
    """Of a run that learns one class from three pictures."""
    config = load("family/subject", "")
    smallest = load("mnist5k", "smallest")
    rng = np.random.default_rng(0)
    (tmp_path / "images" / "mug").mkdir(parents=True)
    for i in range(3):
        picture = Image.fromarray(rng.integers(0, 256, (28, 28), np.uint8))
        picture.save(tmp_path / "images" / "mug" / f"{i}.png")
    model = write_model(tmp_path / "model")
    with config.unlocked():
        config.tokenizer, config.model = smallest.tokenizer, smallest.model
        config.model.update(num_classes=0, class_drop_rate=0.0)
        config.evaluation.likelihood = False
        config.data.options.path = str(tmp_path / "images")
        config.tokenizer_checkpoint = str(model / "tokenizer")
        config.train.update(initial_checkpoint=str(model), num_steps=2, batch_size=8, log_every=1)
    return config


def test_labels_come_after_those_that_are_known(config):
    records = build.training_source(config, "train", "")
    assert isinstance(records, AfterKnown)
    assert records.class_names == (*map(str, range(10)), "mug") and records.num_classes == 11
    assert [records[i]["label"] for i in range(len(records))] == [10, 10]
    assert records.name(0).endswith(".png")
    copy = pickle.loads(pickle.dumps(records))
    assert [r["label"] for r in copy.__getitems__([1, 0])] == [10, 10]
    # The pictures themselves, such as a tokenizer reads, have the labels of their folder.
    assert build.source(config, "train").num_classes == 1
    config.train.known_classes = 0
    assert build.training_source(config, "train", "").num_classes == 1


def test_classes_are_known_to_a_model_that_is_there(config):
    config.train.initial_checkpoint = ""
    with pytest.raises(ConfigError, match="known_classes is 10, but the run starts from nothing"):
        build.transformer_experiment(config)


def test_what_a_source_says_of_itself_is_kept():
    digits = sources.make_source("mnist5k", "val")
    records = AfterKnown(digits, 10)
    for name in ("background", "resize", "variants", "captioned"):
        assert getattr(records, name, None) == getattr(digits, name, None)
    assert records.channels == 1 and len(records) == len(digits)
    assert records[7]["label"] == digits[7]["label"] + 10


def test_a_new_class_is_learned_beside_the_known_ones(config, tmp_path):
    config.train.objective.prior_class = 0
    before, _ = build.load_params(config.train.initial_checkpoint, "transformer", None)
    workdir = tmp_path / "run"
    assert build.run(config, str(workdir), "transformer")
    after, metadata = build.load_params(workdir, "transformer", None)
    assert metadata["data"]["class_names"] == [*map(str, range(10)), "mug"]
    tables = [np.asarray(p["transformer"].pop("class_embedding")) for p in (before, after)]
    # No example has those labels, and their gradient is that of the drawn kind alone.
    np.testing.assert_array_equal(tables[1][1:10], tables[0][1:10])
    np.testing.assert_array_equal(tables[1][11], tables[0][10])
    assert tables[1].shape == (12, tables[0].shape[1])
    mlps = [p["transformer"]["blocks"].pop("mlp") for p in (before, after)]
    assert (np.asarray(mlps[0]["up"]["kernel"]) != np.asarray(mlps[1]["up"]["kernel"])).any()
    jax.tree.map(np.testing.assert_array_equal, before, after)
    images = var_jax.load(workdir).sample([10, 3], seed=0)
    assert images.shape == (2, 32, 32, 1) and (images[0] != images[1]).any()
