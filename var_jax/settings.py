"""How a setting says that a run may go on with another value of it."""

from __future__ import annotations

from typing import Annotated, TypeVar

_CHANGEABLE = "changeable"

T = TypeVar("T")

#: Type of a setting that says how a run is carried out and not what comes out of it, such as
#: `log_every: Changeable[int] = 50`. All others give the run its meaning: with another value of
#: one of them it would be neither the run that was started nor the one that is asked for.
Changeable = Annotated[T, _CHANGEABLE]


def is_changeable(annotation: object) -> bool:
    """Whether a resolved annotation is a `Changeable`."""
    return _CHANGEABLE in getattr(annotation, "__metadata__", ())
