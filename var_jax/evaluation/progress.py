"""How far a long loop over images is, said in the log."""

from __future__ import annotations

import time

from absl import logging


class Progress:
    """Says every few seconds how far a long loop is, how fast, and when it will end.

    Args:
      what: is counted.
      total: how many there will be.
      show: whether to say anything.
      every: seconds between two lines.
    """

    def __init__(self, what: str, total: int, show: bool = True, every: float = 10.0) -> None:
        self._what, self._total, self._show, self._every = what, total, show, every
        self._done = 0
        self._shown = time.monotonic()
        # Speed counts from the first batch on: before it stands the compilation.
        self._first: tuple[int, float] | None = None

    def add(self, count: int) -> None:
        """Counts more of them."""
        self.at(self._done + count)

    def at(self, done: int) -> None:
        """Says that so many are done."""
        self._done = done
        now = time.monotonic()
        self._first = self._first or (done, now)
        if not self._show or now - self._shown < self._every:
            return
        self._shown = now
        first_done, first_time = self._first
        if done == first_done or now == first_time:
            logging.info("%s %d/%d", self._what, done, self._total)
            return
        speed = (done - first_done) / (now - first_time)
        to_go = max(self._total - done, 0) / speed
        logging.info(
            "%s %d/%d  %.4g images/s  to go %s",
            self._what,
            done,
            self._total,
            speed,
            f"{to_go // 3600:.0f} h {to_go % 3600 / 60:.0f} min"
            if to_go >= 3600
            else f"{to_go:.0f} s",
        )


class ScoringProgress:
    """The same for `ReferenceScorer`: one line each for the reference and the samples."""

    def __init__(self) -> None:
        self._parts: dict[str, Progress] = {}

    def __call__(self, what: str, done: int, total: int) -> None:
        if what not in self._parts or done <= self._parts[what]._done:
            self._parts[what] = Progress(f"features of the {what}", total)
        self._parts[what].at(done)
