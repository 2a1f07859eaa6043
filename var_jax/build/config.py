"""The whole config: whether all of it is known, and how two of them differ."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict, config_dict

from var_jax.build.comparison import COMPARISON
from var_jax.build.data import DATA
from var_jax.build.evaluation import EVALUATION
from var_jax.build.modules import model_section, sampling_section, tokenizer_section
from var_jax.build.scaling import SCALING
from var_jax.build.sections import (
    REQUIRED,
    ConfigError,
    Key,
    Section,
    check,
    find,
    opened,
    tuples,
    walk,
)
from var_jax.build.training import MESH, TOKENIZER_TRAIN, TRAIN
from var_jax.parallel import sharding
from var_jax.settings import Changeable


@dataclasses.dataclass(frozen=True)
class RunSettings:
    """What a config says outside its sections.

    Attributes:
      patch_nums: side length of each level.
      seed: of parameters, order, crops and samples.
      tokenizer_checkpoint: workdir of the tokenizer of a transformer; what it holds is compared
        by fingerprint, so it may move.
      token_cache: what launch.cache_tokens wrote; '' encodes images in the step.
      sample_cache: what launch.cache_samples wrote of train.initial_checkpoint, for objectives that
        learn from samples.
      sharding: preset of `var_jax.parallel.sharding`.
      frozen_sharding: of the tokenizer beside a transformer that trains.
    """

    patch_nums: tuple[int, ...]
    seed: int = 0
    tokenizer_checkpoint: Changeable[str] = ""
    token_cache: Changeable[str] = ""
    sample_cache: Changeable[str] = ""
    sharding: Changeable[str] = "replicated"
    frozen_sharding: Changeable[str] = "replicated"


_RUN = Section(
    (RunSettings,),
    sections={
        "data": DATA,
        "tokenizer": lambda values: tokenizer_section(values.get("tokenizer")),
        "tokenizer_train": TOKENIZER_TRAIN,
        "model": lambda values: model_section(values.get("model")),
        "train": TRAIN,
        "sampling": lambda values: sampling_section(values.get("model")),
        "evaluation": EVALUATION,
        "mesh": MESH,
        "scaling": SCALING,
    },
)
#: Of a comparison each method is a config of its own.
ROOT = dataclasses.replace(
    _RUN,
    sections={
        **_RUN.sections,
        "comparison": COMPARISON,
        "methods": dataclasses.replace(_RUN, named=True),
    },
)

#: Of several trainings.
_OF_STUDIES = ("scaling", "comparison", "methods")

#: What the training of a kind of model does not read. A transformer's takes from the tokenizer
#: what it says, and which one that is, is compared by its fingerprint.
_UNREAD = {
    "tokenizer": (
        *("model", "train", "sampling", "token_cache", "sample_cache", "tokenizer_checkpoint"),
        *_OF_STUDIES,
    ),
    "transformer": (
        *("tokenizer_train", "tokenizer", "data.image_size", "data.channels"),
        *_OF_STUDIES,
    ),
}


def check_config(config: ConfigDict) -> None:
    """Raises ConfigError, with the nearest known name, for what no reader of the config knows."""
    check(tuples(config), "config", ROOT)
    for name in ("sharding", "frozen_sharding"):
        sharding.resolve_rules(config.get(name, "replicated"))


def make_room(config: ConfigDict, given: Mapping[str, str]) -> None:
    """Puts known keys that a config leaves out into it, to be set from a command line.

    Args:
      config: changed.
      given: values as they are written there, by dotted name, such as 'train.wandb_project'. Only
        kinds are looked at, since they say which keys their sections have.

    Raises:
      ConfigError: there is no such key, with the nearest one.
    """
    values = config.to_dict()
    for name, value in given.items():
        _choose_kind(values, name, value)
    keys = {name: find(ROOT, values, name) for name in given}
    with config.unlocked(), config.ignore_type():
        for name, key in keys.items():
            *above, last = name.split(".")
            section = config
            for part in above:
                inside = opened(section.get(part))
                if not isinstance(inside, ConfigDict):  # None, or a kind alone.
                    section[part] = ConfigDict(inside or {})
                section = section[part]
            if last in section:
                continue
            if isinstance(key, Key):
                section[last] = _stand_in(key)
            else:
                section[last] = given[name] if "kind" in key.keys else ConfigDict()


def _choose_kind(values: dict[str, Any], name: str, value: str) -> None:
    """Sets the kind of a section, 'train.adapter.kind' or 'train.adapter', in nested values."""
    *above, last = name.removesuffix(".kind").split(".")
    for part in above:
        values[part] = inside = opened(values.get(part)) or {}
        if not isinstance(inside, dict):
            return
        values = inside
    if name.endswith(".kind"):
        there = opened(values.get(last)) or {}
        values[last] = {**there, "kind": value} if isinstance(there, dict) else there
    elif values.get(last) is None:
        values[last] = value


def _stand_in(key: Key) -> Any:
    """The key's default, or where it has none a place of its type."""
    if key.default is not REQUIRED and key.default is not None:
        return key.default
    for kind in (bool, int, float, str, tuple):
        if kind in (key.annotation, *getattr(key.annotation, "__args__", ())):
            return config_dict.placeholder(kind)
    return config_dict.placeholder(str)


@dataclasses.dataclass(frozen=True)
class Change:
    """A key whose value differs between two configs.

    Attributes:
      path: such as 'config.train.batch_size'.
      before, now: both values.
      changeable: a run may go on with it, see `var_jax.settings`.
    """

    path: str
    before: Any
    now: Any
    changeable: bool

    def __str__(self) -> str:
        return f"{self.path}: {_shown(self.before)} -> {_shown(self.now)}"


def changes(
    before: Mapping[str, Any] | ConfigDict, now: Mapping[str, Any] | ConfigDict, kind: str
) -> list[Change]:
    """Where two configs of a training differ; a key that is missing equals its default.

    A number of classes of 0, which the data fills in, equals any.

    Args:
      before, now: configs.
      kind: 'tokenizer' or 'transformer': sections that its training does not read are left out.
    """
    old, new = flat(before), flat(now)
    found = []
    for path in sorted({**old, **new}):
        if any(f"{path}.".startswith(f"config.{unread}.") for unread in _UNREAD[kind]):
            continue
        (a, by_old), (b, by_new) = old.get(path, (None, None)), new.get(path, (None, None))
        # A section that one of the two has not, or a key that is no longer known.
        a = a if by_old else _default(by_new)
        b = b if by_new else _default(by_old)
        from_data = path == "config.model.num_classes" and 0 in (a, b)
        if a != b and not from_data:
            found.append(Change(path, a, b, bool((by_new or by_old).changeable)))
    return found


def flat(config: Mapping[str, Any] | ConfigDict) -> dict[str, tuple[Any, Key]]:
    """Value and key of every known setting by path, defaults where the config says nothing.

    Values are as JSON holds them, lists as tuples, so that a saved config equals the given one.
    """
    config = ConfigDict(config).to_dict()
    values = tuples(json.loads(json.dumps(config)))
    found = {}
    for path, section, inside in walk(ROOT, values):
        for name, key in section.keys.items():
            found[f"{path}.{name}"] = (inside.get(name, _default(key)), key)
    return found


def _default(key: Key) -> Any:
    return None if key.default is REQUIRED else tuples(key.default)


def _shown(value: Any) -> str:
    text = repr(list(value) if isinstance(value, tuple) else value)
    return text if len(text) <= 80 else text[:77] + "..."


__all__ = ["Change", "ConfigError", "changes", "check_config", "flat", "make_room"]
