"""Methods trained alike and compared, from config.comparison and config.methods."""

from __future__ import annotations

import dataclasses

from ml_collections import ConfigDict

from var_jax.build.sections import ConfigError, Section, call, read_section, tuples


@dataclasses.dataclass(frozen=True)
class ComparisonSettings:
    """config.comparison; config.methods holds a whole config for each method, by name.

    Attributes:
      methods: those of config.methods that are compared, in the order of the tables; the first is
        what they are compared with, and the given tokenizer_checkpoint and token_cache are its.
      seeds: of the runs of each method: parameters, order of the data, samples. Tokenizers and the
        classifier that scores have that of their config.
      tokens_seen: tokens, over all examples, that the training of each method passes over; 0 leaves
        the number of steps to its config. A method that starts from another's run keeps its own.
      warmup: fraction of a training in which its learning rate rises, where tokens_seen decides the
        number of its steps.
      models: (method, key of its config, other method): the key names the other's run of the same
        seed, such as ('cca', 'train.initial_checkpoint', 'var').
      crops: augmented copies of each training image in a token cache.
      num_samples: images drawn of each run, the classes in turn.
      sample_batch: images drawn at once, and timed.
      classifier_steps: updates of the classifier that scores.
    """

    methods: tuple[str, ...]
    seeds: tuple[int, ...] = (0, 1, 2)
    tokens_seen: int = 0
    warmup: float = 0.05
    models: tuple[tuple[str, ...], ...] = ()
    crops: int = 4
    num_samples: int = 1000
    sample_batch: int = 100
    classifier_steps: int = 800


COMPARISON = Section((ComparisonSettings,), changeable=True)


def comparison_settings(config: ConfigDict) -> ComparisonSettings:
    """Reads config.comparison and looks at config.methods.

    Raises:
      ConfigError: something is unknown or missing, or the methods read different data.
    """
    configs = config.get("methods")
    if not configs:
        raise ConfigError("The config has no methods; configs/family/compare.py is an example.")
    values = read_section(config, "comparison", COMPARISON)
    settings = call(ComparisonSettings, "config.comparison", values)
    names = settings.methods
    unknown = [name for name in names if name not in configs]
    if unknown or not names or len(set(names)) < len(names):
        raise ConfigError(
            f"config.comparison.methods is {names}; give some of config.methods, once each: "
            f"{', '.join(configs)}."
        )
    if not settings.seeds:
        raise ConfigError("config.comparison.seeds is empty; give one seed or more.")
    if not 0 < settings.sample_batch <= settings.num_samples:
        raise ConfigError(
            f"config.comparison.sample_batch is {settings.sample_batch}; it must be in "
            f"1..num_samples, which is {settings.num_samples}."
        )
    for entry in settings.models:
        if len(entry) == 3 and entry[0] not in names:
            continue
        if len(entry) != 3 or entry[2] not in names[: names.index(entry[0])]:
            raise ConfigError(
                f"config.comparison.models has {entry}; give a method, a key of its config, and a "
                f"method that comes before it in comparison.methods: {', '.join(names)}."
            )
    for name in names[1:]:
        if tuples(configs[name].data) != tuples(configs[names[0]].data):
            raise ConfigError(
                f"config.methods.{name}.data differs from that of {names[0]}; methods are compared "
                "on the same data."
            )
    return settings
