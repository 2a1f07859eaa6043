import pytest
from recipes import TRANSFORMERS, load

from var_jax import build
from var_jax.build.sections import ConfigError
from var_jax.context import RecentLevels
from var_jax.decoding.guidance import ConstantGuidance, PerLevelGuidance


@pytest.mark.parametrize("recipe", TRANSFORMERS)
def test_every_config_builds(recipe):
    config = load(*recipe)
    tokenizer = build.tokenizer(config)
    assert tokenizer.codec.pyramid == build.pyramid(config)
    if not config.model.num_classes:
        build.set_num_classes(config, 9)
    var = build.network(config).transformer
    assert var.width // var.num_heads == (128 if recipe[0] == "infinity_2b" else 64)
    build.decoder(config)


def test_values_reach_the_objects():
    config = load("mnist5k")
    config.unlock()
    config.model.context = dict(kind="recent_levels", num_previous=1)
    assert build.network(config).transformer.context == RecentLevels(1)
    config.sampling.cfg_schedule = "constant"
    assert build.decoder(config).guidance == ConstantGuidance(config.sampling.cfg)
    with config.ignore_type():
        config.sampling.cfg = (0.0, 0.5, 1.0, 2.0)
    assert build.decoder(config).guidance == PerLevelGuidance((0.0, 0.5, 1.0, 2.0))


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
        build.network(config)
        build.decoder(config)


@pytest.mark.parametrize(
    "section, values, message",
    [
        (
            "sampling",
            {"patch_nums": (1, 2, 4)},
            "sampling.patch_nums is set, but .*'collaborative'",
        ),
        ("model", {"head": "categorical", "label_smoothing": 0.1}, "label_smoothing is 0.1, but"),
    ],
)
def test_what_would_not_be_read_is_refused(section, values, message):
    config = load("family/code", "smallest")
    with config.unlocked(), config.ignore_type():
        config[section].update(values)
    with pytest.raises(ConfigError, match=message):
        build.network(config)
        build.decoder(config)
