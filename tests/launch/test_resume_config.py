"""A run is compared with its workdir before anything is read, and its start is recorded."""

import json
import sys
import types

import numpy as np
import pytest
from recipes import load

from var_jax import build
from var_jax.build.sections import ConfigError
from var_jax.checkpoint import Checkpointer

FACTS = {"class_names": ["0", "1"], "images": 10, "crops": 0, "crops_seed": None}


@pytest.fixture
def config():
    config = load("mnist5k", "smallest")
    config.tokenizer_checkpoint = "nowhere"
    return config


def save(workdir, config, **values):
    metadata = build.metadata(config, "transformer", ema=False, **values)
    with Checkpointer(workdir) as checkpointer:
        state = {"params": {"x": np.zeros(2, np.float32)}}
        checkpointer.save(4, state, metadata)


def test_another_config_is_refused_before_the_tokenizer_is_looked_for(tmp_path, config):
    save(tmp_path, config)
    config.seed = 1
    with pytest.raises(ConfigError, match="config.seed: 0 -> 1"):
        build.run(config, str(tmp_path), "transformer")
    config.seed = 0
    with pytest.raises(FileNotFoundError, match="nowhere"):
        build.run(config, str(tmp_path), "transformer")
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoints"}


@pytest.fixture
def untrained(monkeypatch):
    """An experiment of these data that is not trained."""

    def pretend(facts):
        experiment = types.SimpleNamespace(
            metadata={"data": facts}, settings=types.SimpleNamespace(num_steps=4)
        )
        module = sys.modules["var_jax.build.training_run"]
        monkeypatch.setitem(module.MODELS, "transformer", ("train", lambda *_: experiment))
        monkeypatch.setattr(module, "train", lambda *_: types.SimpleNamespace(step=4))

    return pretend


def test_what_a_command_changes_is_noted_beside_it(tmp_path, config, untrained):
    save(tmp_path, config, data=FACTS)
    config.train.log_every = 1
    untrained(FACTS)
    assert build.run(config, str(tmp_path), "transformer")
    assert json.loads((tmp_path / "config.json").read_text())["train"]["log_every"] == 1
    note, command = (tmp_path / "commands.txt").read_text().splitlines()
    assert note == "# config.train.log_every: 2 -> 1" and not command.startswith("#")


def test_other_data_are_refused_before_the_start_is_recorded(tmp_path, config, untrained):
    save(tmp_path, config, data=FACTS)
    untrained({**FACTS, "class_names": ["1", "0"]})
    with pytest.raises(ConfigError, match="list of classes: 2 names .* -> 2 names"):
        build.run(config, str(tmp_path), "transformer")
    assert not (tmp_path / "config.json").exists()
    assert build.run(config, str(tmp_path), "transformer", allow_change=True)
