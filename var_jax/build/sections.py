"""Sections of a config: which keys they have, of which type, and sentences about wrong ones.

A `Section` takes its keys from the signatures of what is built from it, and readers get the values
through it alone; so what is known, what is read and what a resumed run compares are the same.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from var_jax.settings import is_changeable

#: The default of a key that must be given.
REQUIRED = inspect.Parameter.empty


class ConfigError(ValueError):
    """A config says what it cannot say; the message is one sentence."""


@dataclasses.dataclass(frozen=True)
class Key:
    """One setting.

    Attributes:
      annotation: its type.
      default: REQUIRED if there is none.
      changeable: a run may go on with another value, see `var_jax.settings`.
    """

    annotation: Any
    default: Any
    changeable: bool


@dataclasses.dataclass(frozen=True)
class Section:
    """What a section of a config may hold.

    Attributes:
      readers: functions and classes whose parameters are its keys; of parameters of one name the
        first counts.
      given: parameters that are no keys, since the builder computes them.
      sections: sections inside it by name; where their keys hang on other values, a function of
        this section's values.
      only: the keys that are left of the readers'; None is all.
      changeable: keys that a run may change beside those whose type says so; True is all of them,
        in sections inside too.
      named: it holds sections of any name, all like this one.
    """

    readers: tuple[Callable[..., Any], ...]
    given: tuple[str, ...] = ()
    sections: Mapping[str, Section | Callable[[Mapping[str, Any]], Section]] = dataclasses.field(
        default_factory=dict
    )
    only: tuple[str, ...] | None = None
    changeable: bool | tuple[str, ...] = ()
    named: bool = False

    @functools.cached_property
    def keys(self) -> dict[str, Key]:
        """The settings by name, without the sections inside."""
        found: dict[str, Key] = {}
        left_out = {*self.given, *self.sections, "parent", "name"}
        for reader in self.readers:
            for name, parameter in inspect.signature(reader).parameters.items():
                if name in left_out or name in found:
                    continue
                if self.only is not None and name not in self.only:
                    continue
                found[name] = self._key(reader, name, parameter)
        return found

    def _key(self, reader: Any, name: str, parameter: inspect.Parameter) -> Key:
        annotation, default = parameter.annotation, parameter.default
        if isinstance(annotation, str):
            annotation = eval(annotation, vars(sys.modules[reader.__module__]))
        by_type = is_changeable(annotation)
        if by_type:
            annotation = annotation.__origin__
        if annotation is np.dtype and default is not REQUIRED:
            default = np.dtype(default).name
        changeable = self.changeable is True or name in (self.changeable or ())
        return Key(annotation, default, by_type or changeable)

    def section(self, name: str, values: Mapping[str, Any]) -> Section:
        """The section inside of a name."""
        found = self.sections[name]
        found = found if isinstance(found, Section) else found(values)
        if self.changeable is True:
            return dataclasses.replace(found, changeable=True)
        return found

    @property
    def names(self) -> list[str]:
        """Of all keys and sections inside."""
        return sorted([*self.keys, *self.sections])


def tuples(value: Any) -> Any:
    """Lists as tuples, all the way down: JSON and ConfigDict have no hashable sequence."""
    if isinstance(value, (list, tuple)):
        return tuple(tuples(v) for v in value)
    if isinstance(value, Mapping | ConfigDict):
        return {k: tuples(v) for k, v in value.items()}
    return value


def opened(value: Any) -> Any:
    """A section that is given by a name alone, such as context='own_scale', is of that kind."""
    return {"kind": value} if isinstance(value, str) else value


def read_section(config: ConfigDict, name: str, section: Section) -> dict[str, Any]:
    """A section's values, checked, lists as tuples.

    Raises:
      ConfigError: there is no such section, or an unknown key or a value of another type in it.
    """
    if name not in config:
        raise ConfigError(f"The config has no section {name!r}; configs/ has complete examples.")
    return read(config[name], f"config.{name}", section)


def read(values: Any, path: str, section: Section) -> dict[str, Any]:
    """The values of a section at a path such as 'config.train.optimizer', checked, as tuples.

    Raises:
      ConfigError: an unknown key, or a value of another type.
    """
    values = tuples(values)
    check(values, path, section)
    return values


def check(values: Any, path: str, section: Section) -> None:
    """Raises ConfigError if a section holds an unknown key or a value of another type."""
    if section.named:
        for name, inside in _mapping(values, path).items():
            check(inside, f"{path}.{name}", dataclasses.replace(section, named=False))
        return
    inside = {}
    for name, value in _mapping(values, path).items():
        if name in section.sections:
            inside[name] = value
        elif name not in section.keys:
            raise ConfigError(unknown(name, path, section))
        elif not fits(value, section.keys[name].annotation):
            kind = describe(section.keys[name].annotation)
            raise ConfigError(f"{path}.{name} is {value!r}; it must be {kind}.")
    # After the values, on which the keys of a section inside may hang.
    for name, value in inside.items():
        if value is not None:
            check(opened(value), f"{path}.{name}", section.section(name, values))


def unknown(name: str, path: str, section: Section) -> str:
    """The sentence about a key that is not there, with the nearest one that is."""
    near = difflib.get_close_matches(name, section.names, 1)
    meant = f"did you mean {near[0]!r}? Known are" if near else "known are"
    return f"{path} has the unknown key {name!r}; {meant} {', '.join(section.names)}."


def call(function: Any, path: str, values: Mapping[str, Any], **fixed: Any) -> Any:
    """function(**values, **fixed) with those of the values that it takes.

    Raises:
      ConfigError: a value is missing.
    """
    parameters = inspect.signature(function).parameters
    values = {k: v for k, v in values.items() if k in parameters and k not in fixed}
    for name, parameter in parameters.items():
        missing = parameter.default is REQUIRED and name not in fixed
        if missing and values.get(name) in (None, ""):
            raise ConfigError(f"{path} needs a value for {name!r}.")
    return function(**values, **fixed)


def find(root: Section, values: Mapping[str, Any], name: str) -> Key | Section:
    """What a dotted name such as 'train.optimizer.b1' stands for.

    Args:
      root: of the whole config.
      values: of the config, where sections hang on them.
      name: dotted.

    Raises:
      ConfigError: there is no such key, with the nearest one.
    """
    section, path = root, "config"
    *above, last = name.split(".")
    for part in above:
        if section.named:
            section = dataclasses.replace(section, named=False)
        elif part in section.sections:
            section = section.section(part, values)
        elif part in section.keys:
            raise ConfigError(f"{path}.{part} is a value and has nothing inside, got {name!r}.")
        else:
            raise ConfigError(unknown(part, path, section))
        inside = opened(values.get(part)) if isinstance(values, Mapping | ConfigDict) else None
        values, path = ({} if inside is None else inside), f"{path}.{part}"
    if section.named:
        return dataclasses.replace(section, named=False)
    if last in section.sections:
        return section.section(last, values)
    if last not in section.keys:
        raise ConfigError(unknown(last, path, section))
    return section.keys[last]


def walk(
    section: Section, values: Mapping[str, Any], path: str = "config"
) -> Iterator[tuple[str, Section, Mapping[str, Any]]]:
    """(path, section, values) of a section and of all inside it that the values have."""
    if section.named:
        section = dataclasses.replace(section, named=False)
        for name, inside in values.items():
            yield from walk(section, inside, f"{path}.{name}")
        return
    yield path, section, values
    for name in section.sections:
        if values.get(name) is not None:
            inside = section.section(name, values)
            yield from walk(inside, opened(values[name]), f"{path}.{name}")


def fits(value: Any, annotation: Any) -> bool:
    """Whether a value is of a type, as far as a config can say it; unknown types take all."""
    options = _options(annotation)
    if len(options) > 1:
        return any(fits(value, option) for option in options)
    (kind,) = options
    if kind in (None, types.NoneType):
        return value is None
    if kind is bool:
        return isinstance(value, (bool, np.bool_))
    if kind in (int, float):
        numbers = (int, np.integer) if kind is int else (int, float, np.integer, np.floating)
        return isinstance(value, numbers) and not isinstance(value, (bool, np.bool_))
    if kind in (str, np.dtype):
        return isinstance(value, str)
    if typing.get_origin(kind) in (tuple, Sequence, list):
        inner = [a for a in typing.get_args(kind) if a is not Ellipsis]
        return isinstance(value, tuple) and all(fits(v, inner[0]) for v in value)
    return True


def describe(annotation: Any) -> str:
    """A type in words."""
    words = {bool: "True or False", int: "a whole number", float: "a number", str: "a text"}
    words |= {np.dtype: "the name of a type", types.NoneType: "None", None: "None"}
    named = []
    for kind in _options(annotation):
        if typing.get_origin(kind) in (tuple, Sequence, list):
            inner = describe(typing.get_args(kind)[0])
            named.append(f"a list, each of it {inner}")
        else:
            named.append(words.get(kind, getattr(kind, "__name__", str(kind))))
    return " or ".join(named)


def _options(annotation: Any) -> tuple[Any, ...]:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        # A PathLike is a text here: a config is JSON.
        return tuple(a for a in typing.get_args(annotation) if not hasattr(a, "__fspath__"))
    return (annotation,)


def _mapping(values: Any, path: str) -> Mapping[str, Any]:
    if not isinstance(values, Mapping):
        raise ConfigError(f"{path} is {values!r}, but it is a section: give its keys.")
    return values
