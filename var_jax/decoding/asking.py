"""What people ask a model for, labels or texts, as programs take it."""

from __future__ import annotations

import collections
import dataclasses
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

from var_jax.data import captions
from var_jax.transformer.condition import Conditioner, ReadsText
from var_jax.transformer.var import VAR

#: Labels, or texts, or one text.
Asked = str | Sequence[int] | Sequence[str]

#: Samples of one seed and label before numbers repeat.
_MOST_PER_LABEL = 2**20


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked for of n samples, on the host.

    Attributes:
      fields: those of a batch that the conditioner reads, such as 'label' int32 [n].
      given: see `Conditioner`.
      numbers: int64 [n], global numbers of the samples, see `sample_numbers`.
    """

    fields: dict[str, np.ndarray]
    given: Any
    numbers: np.ndarray


def request(
    transformer: VAR,
    what: Asked | None,
    *,
    count: int | None = None,
    negative: str | Sequence[str] | None = None,
) -> Request:
    """Reads what is asked of a model.

    Args:
      transformer: whose conditioner is asked.
      what: None is nothing, `count` times: 'no class', or the empty text.
      count: how many samples there must be; None is as many as are asked for.
      negative: text that guidance steers away from, one for all or one for each; None is the empty
        one.

    Raises:
      ValueError: a label out of range, labels in place of texts or texts in place of labels, what
        is no text, or another number of them.
    """
    conditioner = transformer.conditioning()
    reads_text = isinstance(conditioner, ReadsText)
    nothing: Any = "" if reads_text else transformer.num_classes
    what = [nothing] * (count or 0) if what is None else what
    items: list[Any] = [what] if isinstance(what, str) else list(what)
    fields = _fields(conditioner, items)
    given = conditioner.read(fields)
    if negative is not None:
        if not isinstance(conditioner, ReadsText):
            raise ValueError("This model is conditioned on classes; a negative prompt needs text.")
        texts = [negative] * len(items) if isinstance(negative, str) else list(negative)
        if len(texts) != len(items):
            raise ValueError(
                f"{len(items)} prompts came with {len(texts)} negative ones; give as many, or one."
            )
        given = conditioner.steered(given, texts)
    if count is not None and len(items) != count:
        kind = "texts" if reads_text else "labels"
        raise ValueError(f"{count} images came with {len(items)} {kind}.")
    # By the text itself: the last bits of what an encoder makes of it hang on the device.
    rows = captions.rows(items) if reads_text else fields["label"]
    return Request(fields, given, sample_numbers(rows))


def check_asks_for_classes(transformer: VAR) -> None:
    """Raises ValueError for a model of text, where classes are to be drawn."""
    if isinstance(transformer.conditioning(), ReadsText):
        raise ValueError(
            "This model is conditioned on text, but what is asked for here are classes; draw with "
            "launch.sample --prompts, or Model.sample."
        )


def _fields(conditioner: Conditioner, items: list[Any]) -> dict[str, np.ndarray]:
    texts = [isinstance(item, str) for item in items]
    if isinstance(conditioner, ReadsText):
        if not all(texts):
            raise ValueError(
                f"This model is conditioned on text, got {items[texts.index(False)]}; ask for "
                "texts such as 'a red bird'."
            )
        return conditioner.written(items)
    if any(texts):
        raise ValueError(
            f"This model is conditioned on classes, got {items[texts.index(True)]!r}; ask for "
            "their numbers."
        )
    labels = np.asarray(items, np.int64).reshape(-1)
    conditioner.check(conditioner.read({"label": labels}))
    return {"label": labels.astype(np.int32)}


def sample_numbers(
    asked: Int[np.ndarray, " n"] | UInt8[np.ndarray, "n T"],
) -> Int[np.ndarray, " n"]:
    """Global numbers of samples that hang on the label, or the bytes of a text, and on how often it
    came before, so that the n-th of a label is the same in any list."""
    seen: collections.Counter[bytes] = collections.Counter()
    found = np.zeros(len(asked), np.int64)
    for i, row in enumerate(asked):
        name = row.tobytes().rstrip(b"\0")
        # Texts that share a hash share their noise, which does no harm.
        kind = int(row) if row.ndim == 0 else zlib.crc32(name) % 2**12
        found[i] = seen[name] + _MOST_PER_LABEL * kind
        seen[name] += 1
    return found
