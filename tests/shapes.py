"""The shapes that var_jax's annotations tell, checked at each call.

conftest.py installs the check. An annotation is jaxtyping's: `Float[Array, "B H W c"]`, with one
space before what else would be Python (`Int[Array, " B"]`, `Shaped[Array, " B *shape"]`).
Names: B batch, L tokens, K levels, N heads, H W c image (H also the dimension of a head), h w grid,
C channels of the latent, D width, V vocabulary, T tokens of the condition, P hosts.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable

import beartype
import jaxtyping


def checked(function: Callable) -> Callable:
    """The function, which checks its arguments and result against the shapes in its annotations.

    Annotations without a shape are left to the static type checker. What holds the array is not
    checked: JAX takes NumPy's for its own, and plans are made of shapes alone.
    """
    annotations = {
        name: _of_any_array(annotation)
        for name, annotation in inspect.get_annotations(function).items()
        if _tells_a_shape(annotation)
    }
    if not annotations:
        return function
    function.__annotations__ = annotations
    return beartype.beartype(function)


def _of_any_array(annotation: object) -> object:
    """The same shapes and dtypes of anything that has them."""
    if inspect.isclass(annotation) and issubclass(annotation, jaxtyping.AbstractArray):
        return annotation.dtype[typing.Any, annotation.dim_str]
    arguments = tuple(map(_of_any_array, typing.get_args(annotation)))
    if not arguments:
        return annotation
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        return typing.Union[arguments]  # noqa: UP007
    return origin[arguments]


def _tells_a_shape(annotation: object) -> bool:
    if inspect.isclass(annotation) and issubclass(annotation, jaxtyping.AbstractArray):
        return True
    return any(map(_tells_a_shape, typing.get_args(annotation)))
