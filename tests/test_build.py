import importlib.util
import pathlib

import pytest

from var_jax import build
from var_jax.context import RecentLevels
from var_jax.sampling.guidance import ConstantGuidance, PerLevelGuidance

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"


def load(name, *variant):
    spec = importlib.util.spec_from_file_location(name, CONFIGS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(*variant)


@pytest.mark.parametrize(
    "name, variants",
    [
        ("mnist5k", ["", "smallest"]),
        ("emoji64", []),
        ("var_imagenet256", ["d16", "d20", "d24", "d30"]),
        ("var_imagenet512", []),
    ],
)
def test_every_config_builds(name, variants):
    for variant in variants or [None]:
        config = load(name, *([] if variant is None else [variant]))
        tokenizer = build.tokenizer(config)
        assert tokenizer.codec.pyramid == build.pyramid(config)
        if not config.model.num_classes:
            build.set_num_classes(config, 9)
        var = build.var(config)
        assert var.width // var.num_heads == 64
        build.head(config)
        build.sampler(config)
        build.transform(config, train=True)
        settings = build.train_settings(config, "train")
        build.optimizer_config(config.train.optimizer, "train.optimizer", settings.batch_size)


@pytest.mark.parametrize("name", ["mnist5k", "emoji64", "tokenizer_imagenet256"])
def test_every_tokenizer_training_builds(name):
    config = load(name)
    objective, frozen, optimizers = build.vqgan(config)
    assert ("discriminator" in optimizers) == bool(config.tokenizer_train.adversarial_weight)
    assert frozen == {}
    assert objective.tokenizer == build.tokenizer(config)


def test_the_learning_rate_is_for_256_images():
    config = load("var_imagenet256", "d30")
    settings = build.optimizer_config(config.train.optimizer, "x", config.train.batch_size)
    assert settings.learning_rate == pytest.approx(8e-5 * 4)


def test_values_reach_the_objects():
    config = load("mnist5k")
    config.unlock()
    config.model.context = 1
    assert build.var(config).context == RecentLevels(1)
    config.sampling.cfg_schedule = "constant"
    assert build.sampler(config).guidance == ConstantGuidance(config.sampling.cfg)
    with config.ignore_type():
        config.sampling.cfg = (0.0, 0.5, 1.0, 2.0)
    assert build.sampler(config).guidance == PerLevelGuidance((0.0, 0.5, 1.0, 2.0))


@pytest.mark.parametrize(
    "section, key, value, message",
    [
        ("model", "dept", 3, "config.model has the unknown key 'dept'"),
        ("model", "dtype", "float8", "float8"),
        ("model", "context", "everything", "everything"),
        ("tokenizer", "chanels", 3, "config.tokenizer has the unknown key 'chanels'"),
        ("sampling", "cfg_schedule", "sine", "sine"),
        ("data", "image_size", 33, "33"),
    ],
)
def test_mistakes_are_named(section, key, value, message):
    config = load("mnist5k")
    with config.unlocked(), config.ignore_type():
        config[section][key] = value
    with pytest.raises(ValueError, match=message):
        build.tokenizer(config)
        build.var(config)
        build.sampler(config)


def test_progressive_training_changes_the_objective_and_only_then():
    config = load("mnist5k")
    with config.unlocked():
        config.train.progressive = dict(until=0.5, first=0, ramp_steps=10)
    config.train.num_steps, config.train.optimizer.warmup_steps = 100, 10
    module = build.tokenizer(config)
    loaded = build.LoadedTokenizer(module, None, "", config)
    objective_at, evaluated = build.likelihood(config, loaded, cached=True)
    levels = [objective_at(step).num_levels for step in range(100)]
    assert levels[0] == 1 and levels[99] == 0 and 2 in levels
    assert objective_at(0).ramp_steps == 0 and objective_at(levels.index(2)).ramp_steps == 10
    assert objective_at(99) == evaluated
    assert objective_at(0) is objective_at(1)
