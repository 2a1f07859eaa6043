"""A run that goes on is the run that was started."""

import json

import numpy as np
import pytest
from ml_collections import ConfigDict
from recipes import load

from var_jax import build
from var_jax.build.sections import ConfigError
from var_jax.checkpoint import Checkpointer


def save(workdir, config, kind="transformer"):
    with Checkpointer(workdir) as checkpointer:
        metadata = {"kind": kind, "config": config if isinstance(config, dict) else as_json(config)}
        checkpointer.save(4, {"params": {"x": np.zeros(2, np.float32)}}, metadata)


def as_json(config):
    return json.loads(json.dumps(config.to_dict()))


def since(workdir, config, kind="transformer", allow=False):
    return [str(change) for change in build.changes_since(workdir, config, kind, allow)]


def test_a_new_run_and_the_same_run_have_no_changes(tmp_path):
    config = load("mnist5k")
    assert since(tmp_path, config) == []
    save(tmp_path, config)
    assert since(tmp_path, config) == []


@pytest.mark.parametrize(
    "kind, change, message",
    [
        ("transformer", lambda c: c.train.update(batch_size=32), "train.batch_size: 16 -> 32"),
        ("transformer", lambda c: c.train.update(num_steps=9), "config.train.num_steps: 4300 -> 9"),
        ("transformer", lambda c: c.update(seed=1), "config.seed: 0 -> 1"),
        ("transformer", lambda c: c.update(patch_nums=(1, 4)), "config.patch_nums: [1, 2, 4, 4]"),
        ("transformer", lambda c: c.model.update(depth=5), "config.model.depth: 4 -> 5"),
        ("transformer", lambda c: c.data.transform.affine.update(shift=0.0), "affine.shift: 1.0"),
        ("transformer", lambda c: c.data.update(source="emoji"), "'mnist5k' -> 'emoji'"),
        ("transformer", lambda c: c.train.optimizer.update(schedule="linear"), "'cosine' -> 'lin"),
        ("tokenizer", lambda c: c.tokenizer.update(channels=32), "tokenizer.channels: 64 -> 32"),
        ("tokenizer", lambda c: c.tokenizer_train.discriminator.update(channels=8), "16 -> 8"),
    ],
)
def test_what_gives_a_run_its_meaning_is_refused_unless_it_is_allowed(
    tmp_path, kind, change, message
):
    config = load("mnist5k")
    save(tmp_path, config, kind)
    change(config)
    with pytest.raises(ConfigError, match="was trained with another config") as error:
        since(tmp_path, config, kind)
    assert message in str(error.value) and "--allow_config_change" in str(error.value)
    assert any(message in line for line in since(tmp_path, config, kind, allow=True))


def test_all_that_is_refused_is_listed(tmp_path):
    config = load("mnist5k")
    save(tmp_path, config)
    config.seed, config.train.batch_size, config.train.log_every = 3, 32, 7
    expected = r"\(config.seed: 0 -> 3, config.train.batch_size: 16 -> 32\); give the values"
    with pytest.raises(ConfigError, match=expected):
        since(tmp_path, config)


def test_how_a_run_is_carried_out_may_change_and_is_noted(tmp_path):
    config = load("mnist5k")
    save(tmp_path, config)
    with config.unlocked():
        config.mesh.fsdp, config.sharding, config.data.num_threads = 4, "fsdp", 8
        config.data.num_workers, config.model.remat = 2, "full"
        config.train.update(log_every=7, save_every=8, microbatches=2, wandb_project="p")
        config.evaluation = dict(likelihood=False)
        config.sampling.top_p = 0.5
        config.tokenizer_checkpoint, config.token_cache = "elsewhere", "there"
        config.tokenizer_train.batch_size = 999  # The transformer's training does not read it.
    found = since(tmp_path, config)
    assert "config.train.log_every: 500 -> 7" in found and "config.mesh.fsdp: 1 -> 4" in found
    assert "config.evaluation.likelihood: True -> False" in found
    assert len(found) == 13 and not any("tokenizer_train" in line for line in found)


def test_a_run_of_an_older_version_resumes(tmp_path):
    """A saved config without newer keys: what is missing equals its default."""
    config = load("mnist5k")
    old = as_json(config)
    del old["sharding"], old["mesh"], old["sampling"], old["train"]["initial_checkpoint"]
    del old["train"]["optimizer"]["schedule"], old["data"]["num_threads"]
    old["train"]["a_key_that_is_gone"] = 1
    save(tmp_path, old)
    config.train.optimizer.schedule = "lin0"
    assert all(
        "config.sampling" in line or "num_threads" in line for line in since(tmp_path, config)
    )
    config.train.optimizer.schedule = "cosine"
    with pytest.raises(ConfigError, match="schedule: 'lin0' -> 'cosine'"):
        since(tmp_path, config)


def test_what_the_data_and_the_tokenizer_fill_in_is_no_change(tmp_path):
    config = load("emoji64")
    filled = ConfigDict(config.to_dict())
    filled.model.num_classes, filled.tokenizer.channels = 9, 32
    save(tmp_path, filled)
    assert since(tmp_path, config) == []
    config.model.num_classes = 12
    with pytest.raises(ConfigError, match="num_classes: 9 -> 12"):
        since(tmp_path, config)


def test_a_workdir_of_another_kind_of_run_is_refused(tmp_path):
    save(tmp_path, load("mnist5k"), "tokenizer")
    with pytest.raises(ConfigError, match="holds the run of a tokenizer, not of a transformer"):
        since(tmp_path, load("mnist5k"))


def data(names="ab", **changes):
    values = {"class_names": list(names), "images": 10, "crops": 4, "crops_seed": 0}
    return {"tokenizer_fingerprint": "f" * 64, "data": {**values, **changes}}


@pytest.mark.parametrize(
    "now, message",
    [
        (data("abc"), r"list of classes: 2 names \(hash .*\) -> 3 names"),
        (data("ba"), r"list of classes: 2 names \(hash .*\) -> 2 names"),
        (data(images=11), "number of images: 10 -> 11"),
        (data(crops=1, images=12), "images: 10 -> 12, number of crops: 4 -> 1"),
    ],
)
def test_a_run_does_not_go_on_with_other_data(tmp_path, now, message):
    with Checkpointer(tmp_path) as checkpointer:
        state = {"params": {"x": np.zeros(2, np.float32)}}
        checkpointer.save(4, state, {"kind": "transformer", **data()})
    assert build.data_changes(tmp_path, data(), allow=False) == []
    assert build.data_changes(tmp_path / "new", now, allow=False) == []
    with pytest.raises(ConfigError, match=message):
        build.data_changes(tmp_path, now, allow=False)
    assert build.data_changes(tmp_path, now, allow=True)


def test_checkpoints_that_do_not_know_their_data_go_on(tmp_path):
    save(tmp_path, load("mnist5k"))
    assert build.data_changes(tmp_path, data(), allow=False) == []


def test_what_the_hosts_compare_tells_orders_of_classes_apart():
    assert build.identity(data()) == build.identity(data())
    assert build.identity(data("ab")) != build.identity(data("ba"))
    assert build.identity(data())["fingerprint of the tokenizer"] == "f" * 12
