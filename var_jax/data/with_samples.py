"""Cached examples beside cached samples of a model, for objectives that compare the two."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from var_jax.data.token_cache import TokenCache


class WithSamples:
    """A token cache each of whose records also holds a sample of a model with the same label.

    Args:
      examples: the records.
      samples: as many of each class as of any other; sample n has the label n modulo the number of
        classes.
      name: of the field that a sample comes as.

    Raises:
      ValueError: the samples are of fewer classes.
    """

    channels = 0

    def __init__(self, examples: TokenCache, samples: TokenCache, name: str) -> None:
        self.examples, self.samples, self._name = examples, samples, name
        self.num_classes, self.class_names = examples.num_classes, examples.class_names
        self.variants, self.captioned = examples.variants, examples.captioned
        if samples.num_classes < examples.num_classes:
            raise ValueError(
                f"{samples.directory} has samples of {samples.num_classes} classes, the data has "
                f"{examples.num_classes}; draw them of a model of this data."
            )

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Records of several indices, read together."""
        records = self.examples.__getitems__(indices)
        classes = self.samples.num_classes
        rounds = len(self.samples) // classes
        numbers = [
            r["label"] + classes * (i % rounds) for i, r in zip(indices, records, strict=True)
        ]
        field = self.samples.settings.field.name
        samples = self.samples.__getitems__(numbers)
        return [
            {**record, self._name: sample[field]}
            for record, sample in zip(records, samples, strict=True)
        ]

    def name(self, index: int) -> str:
        """Where the example comes from."""
        return self.examples.name(index)
