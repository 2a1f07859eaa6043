"""Data of new classes, whose labels come after those of the classes that a model knows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from var_jax.data.sources import Source

#: Members that not every source has.
_OPTIONAL = ("variants", "background", "resize", "captioned", "settings")


class AfterKnown:
    """A source whose labels are raised by the number of known classes.

    Args:
      records: images or tokens of the new classes.
      known: how many classes come before theirs; they are named by their numbers.
    """

    def __init__(self, records: Source, known: int) -> None:
        self._records, self._known = records, known
        self.channels = records.channels
        self.num_classes = known + records.num_classes
        self.class_names = (*map(str, range(known)), *records.class_names)
        for name in _OPTIONAL:
            if hasattr(records, name):
                setattr(self, name, getattr(records, name))

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Records of several indices, read together where the source can."""
        together = getattr(self._records, "__getitems__", None)
        found = together(indices) if together else [self._records[i] for i in indices]
        return [{**record, "label": record["label"] + self._known} for record in found]

    def name(self, index: int) -> str:
        """Where the record comes from."""
        return self._records.name(index)
