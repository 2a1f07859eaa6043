"""Some of the parameters of a model, chosen by patterns of their paths, and the rest."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Sequence
from typing import Any

from flax.traverse_util import flatten_dict, unflatten_dict


def split(params: Any, patterns: Sequence[str]) -> tuple[Any, Any]:
    """The parameters that patterns choose, and the others.

    Args:
      params: nested dicts of arrays.
      patterns: of paths such as 'transformer/blocks/attention/qkv_kernel', in which * stands for
        any text, slashes too; () is all parameters.

    Returns:
      Nested dicts without what is in the other one, see `join`.
    """
    if not patterns:
        return params, {}
    flat = flatten_dict(params, sep="/", keep_empty_nodes=True)
    chosen = [{}, {}]
    for path, leaf in flat.items():
        chosen[not _matches(path, patterns)][path] = leaf
    first, rest = (unflatten_dict(part, sep="/") for part in chosen)
    return first, rest


def join(chosen: Any, rest: Any) -> Any:
    """What `split` took apart."""
    if not rest:
        return chosen
    first, second = (flatten_dict(part, sep="/", keep_empty_nodes=True) for part in (chosen, rest))
    return unflatten_dict({**first, **second}, sep="/")


def check_patterns(params: Any, patterns: Sequence[str], setting: str) -> None:
    """Raises ValueError if a pattern matches no parameter, with the nearest paths.

    Args:
      params, patterns: see `split`.
      setting: what holds the patterns, for the error.
    """
    paths = list(flatten_dict(params, sep="/"))
    for pattern in patterns:
        if not any(_matches(path, [pattern]) for path in paths):
            near = difflib.get_close_matches(pattern, paths, 3, cutoff=0.0)
            raise ValueError(
                f"{setting} has {pattern!r}, which matches no parameter; the nearest are "
                f"{', '.join(near)}."
            )


def _matches(path: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)
