"""Values of a config section, and sentences about those that are wrong."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict


def tuples(value: Any) -> Any:
    """Lists as tuples, all the way down: JSON and ConfigDict have no hashable sequence."""
    if isinstance(value, (list, tuple)):
        return tuple(tuples(v) for v in value)
    if isinstance(value, Mapping | ConfigDict):
        return {k: tuples(v) for k, v in value.items()}
    return value


def read_section(config: ConfigDict, name: str) -> dict[str, Any]:
    """A section's values, lists as tuples."""
    if name not in config:
        raise ValueError(f"The config has no section {name!r}; configs/ has complete examples.")
    return tuples(config[name])


def call(function: Any, section: str, values: dict[str, Any], **fixed: Any) -> Any:
    """function(**values, **fixed), naming a key that is unknown or missing."""
    parameters = inspect.signature(function).parameters
    known = {k: v for k, v in parameters.items() if k not in (*fixed, "parent", "name")}
    for key in values:
        if key not in known:
            raise ValueError(
                f"config.{section} has the unknown key {key!r}; known are "
                f"{', '.join(sorted(known))}."
            )
    for key, parameter in known.items():
        if parameter.default is parameter.empty and values.get(key, "") == "":
            raise ValueError(f"config.{section} needs a value for {key!r}.")
    return function(**values, **fixed)
