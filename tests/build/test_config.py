"""Every key of a config is known, or an error that names the nearest one."""

import json
import random

import pytest
from ml_collections import ConfigDict
from recipes import TRANSFORMERS, load

from var_jax import build
from var_jax.build.config import ROOT
from var_jax.build.sections import ConfigError, tuples, walk

CONFIGS = [
    *TRANSFORMERS,
    ("tokenizer_imagenet256",),
    *(("scaling_mnist5k", variant) for variant in ("", "smallest")),
]


def misspelt(name, known):
    """Two letters swapped, or, where that is a known name or none, one too many."""
    middle = len(name) // 2
    swapped = name[: middle - 1] + name[middle] + name[middle - 1] + name[middle + 1 :]
    if len(name) < 4 or swapped in known or swapped == name:
        return name + name[-1]
    return swapped


def set_at(config, path, name, value):
    """A copy with a key below a path such as 'config.train'; no name takes the key's place."""
    config = ConfigDict(config.to_dict())
    section = config
    for part in path.split(".")[1:]:
        section = section[part]
    with config.ignore_type():
        section[name] = value
    return config


@pytest.mark.parametrize("recipe", CONFIGS)
def test_each_key_of_each_section_misspelt_once(recipe):
    config = load(*recipe)
    build.check_config(config)
    tried = 0
    for path, section, values in walk(ROOT, tuples(config)):
        for name in values:
            wrong = misspelt(name, section.names)
            changed = set_at(config, path, wrong, values[name])
            with pytest.raises(ConfigError) as error:
                build.check_config(changed)
            start = f"{path} has the unknown key {wrong!r}; did you mean {name!r}? Known are "
            assert str(error.value).startswith(start)
            tried += 1
    assert tried > 50


def test_what_shipped_configs_say_is_what_the_sections_know():
    """The walk above reaches every value of the configs: nothing is passed over."""
    for recipe in CONFIGS:
        config = load(*recipe)
        reached = sum(
            len([v for v in values.values() if not isinstance(v, dict)])
            for _, _, values in walk(ROOT, tuples(config))
        )

        def count(values):
            return sum(count(v) if isinstance(v, dict) else 1 for v in values.values())

        assert reached == count(tuples(config))


@pytest.mark.parametrize(
    "path, name, value, message",
    [
        ("config", "sampels", {}, "did you mean 'sampling'"),
        ("config.train", "batch_size", "16", "config.train.batch_size is '16'; it must be a whole"),
        ("config.train", "batch_size", 16.0, "it must be a whole number"),
        ("config.train", "ema_decay", True, "config.train.ema_decay is True; it must be a number"),
        ("config.train", "optimizer", 3e-4, "optimizer is 0.0003, but it is a section"),
        ("config.train.optimizer", "learning_rate", None, "learning_rate is None; it must be a nu"),
        ("config.model", "context", 1.5, "config.model.context needs a kind"),
        ("config.model", "dtype", 32, "it must be the name of a type"),
        ("config.tokenizer", "multipliers", (1, "2"), "a list, each of it a whole number"),
        ("config.tokenizer", "attention", "no", "it must be True or False"),
        ("config.sampling", "top_p", ("a",), "it must be a number or a list, each of it a number"),
        ("config.data", "options", {"path": "x"}, "config.data.options has the unknown key 'path'"),
        ("config.data", "source", "mnist6k", "Unknown data source 'mnist6k'"),
        ("config", "sharding", "fdsp", "Unknown sharding preset 'fdsp'"),
    ],
)
def test_wrong_values_are_named(path, name, value, message):
    with pytest.raises(ValueError, match="^[^\n]*$") as error:
        build.check_config(set_at(load("mnist5k"), path, name, value))
    assert message in str(error.value)


def test_whole_numbers_are_numbers_and_lists_are_lists():
    config = load("mnist5k")
    with config.unlocked(), config.ignore_type():
        config.train.ema_decay = 0
        config.sampling.cfg = [0, 1, 2, 3]
        config.model.context = dict(kind="recent_levels", num_previous=2)
        config.patch_nums = [1, 2, 4, 4]
        config.data.options = dict(held_out=20)
        config.evaluation = dict(every=None, fid=None)
    build.check_config(config)


def test_a_known_key_that_the_file_leaves_out_gets_its_place_and_its_type():
    config = load("mnist5k")
    config.lock()
    names = ["train.wandb_project", "evaluation.fid.inception", "model.mlp_ratio"]
    names += ["train.optimizer.weight_decay_end", "evaluation.every", "train.batch_size"]
    build.make_room(config, dict.fromkeys(names, ""))
    assert config.is_locked and config.train.batch_size == 16
    assert (config.train.wandb_project, config.model.mlp_ratio) == ("", 4.0)
    assert config.get_type("evaluation") is ConfigDict
    assert config.evaluation.fid.get_type("inception") is str
    assert config.train.optimizer.get_type("weight_decay_end") is float
    assert config.evaluation.get_type("every") is int


@pytest.mark.parametrize(
    "name, message",
    [
        ("train.wandb_projct", "config.train has the unknown key 'wandb_projct'; did you mean"),
        ("trian.batch_size", "config has the unknown key 'trian'; did you mean 'train'"),
        ("train.batch_size.x", "config.train.batch_size is a value and has nothing inside"),
        ("scaling.sizes.d1.depht", "config.scaling.sizes.d1 has the unknown key 'depht'"),
        ("train.adapter.rank", "config.train.adapter needs a kind: lora or 'module:Class'"),
        ("train.adapter.kind", "config.train.adapter.kind is '1'; known are lora"),
    ],
)
def test_what_is_not_known_gets_no_place(name, message):
    config = load("mnist5k")
    before = config.to_dict()
    with pytest.raises(ConfigError, match="^[^\n]*$") as error:
        build.make_room(config, {name: "1"})
    assert message in str(error.value) and config.to_dict() == before


def test_wandb_is_asked_for_before_anything_is_built(monkeypatch):
    config = load("var_imagenet256", "d16")
    build.check_tools(config, "train")
    config.train.wandb_project = "p"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"'p', but the package wandb .* 'var_jax\[wandb\]'"):
        build.check_tools(config, "train")


def test_any_value_anywhere_is_taken_or_refused_in_a_sentence():
    rng = random.Random(0)
    values = [None, True, -1, 0, 3, 1.5, float("nan"), 10**30, "", "x", "../é\n", [], [1], ["a"]]
    values += [{}, {"a": 1}, {"": {}}, [[1, 2]], (0.1, None), b"x"]
    taken = refused = 0
    for _ in range(1000):
        config = load_once(rng.choice(CONFIGS))
        path, section, there = rng.choice(list(walk(ROOT, config)))
        names = [*there, *section.names, "unknown", "", "a.b"]
        name, value = rng.choice(names), rng.choice(values)
        inside = config
        for part in path.split(".")[1:]:
            inside = inside[part]
        inside[name] = value
        try:
            build.check_config(config)
            taken += 1
        except ValueError as error:
            assert str(error).count("\n") == 0 and str(error).endswith(".")
            named = (path, "needs a kind", "sharding preset")
            assert any(part in str(error) for part in named)
            refused += 1
    assert taken > 100 and refused > 500


def load_once(recipe):
    if recipe not in LOADED:
        LOADED[recipe] = json.dumps(load(*recipe).to_dict())
    return json.loads(LOADED[recipe])


LOADED = {}
