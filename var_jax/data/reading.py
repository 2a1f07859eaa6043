"""Reading records that may be damaged, gone or out of reach for a moment."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from var_jax.data.sources import Source

_T = TypeVar("_T")
#: Seconds to wait before each further attempt: a network file system needs time to recover, but
#: a file that is not there, not ours to read, or damaged rarely becomes better.
RETRIES = (0.1, 1.0, 5.0)
RETRIES_IF_LASTING = (0.1,)
_ABSENT = (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError)


class BrokenData(ValueError):
    """So many records of a data set cannot be read that it is not the fault of a few files."""


class UnreadableRecord(Exception):
    """One record cannot be read, for whatever reason, also not at a later attempt."""


def allowed(num_records: int) -> int:
    """So many different unreadable records that a run of `num_records` puts up with.

    A hundredth, or ten where that is less; never more than half.
    """
    return min(max(10, num_records // 100), num_records // 2)


def patiently(read: Callable[[], _T], wait: bool = True) -> _T:
    """What `read` returns, after several attempts if it fails.

    Sources raise what their files and libraries raise, so every exception counts.

    Args:
      read: reads one record.
      wait: False makes one attempt.

    Raises:
      UnreadableRecord: with the reason.
    """
    waits: Iterator[float] | None = None if wait else iter(())
    while True:
        try:
            return read()
        except Exception as error:
            if waits is None:
                waits = iter(RETRIES if _may_pass(error) else RETRIES_IF_LASTING)
            seconds = next(waits, None)
            if seconds is None:
                raise UnreadableRecord(f"{type(error).__name__}: {error}") from error
            time.sleep(seconds)


class PatientReader:
    """Reads records of a source one by one, patiently.

    A record that was given up once is read again each time that it is asked for, but without
    waiting: what comes out depends on the data, not on what was read before.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._given_up: set[int] = set()

    def read(self, index: int) -> dict[str, Any]:
        """The record.

        Raises:
          UnreadableRecord: with the reason.
        """
        try:
            return patiently(lambda: self._source[index], wait=index not in self._given_up)
        except UnreadableRecord:
            self._given_up.add(index)
            raise


def _may_pass(error: Exception) -> bool:
    if isinstance(error, RuntimeError):  # ArrayRecord's only kind: files that fail and damage.
        return not str(error).startswith("Corrupted")
    return isinstance(error, OSError) and not isinstance(error, _ABSENT)
