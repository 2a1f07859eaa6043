"""Captions: what pictures show, in words, as bytes of a fixed length.

A source of captioned pictures gives records with "captions", a tuple of texts. A batch holds one of
them for each example, "caption" uint8 [T]: the bytes of its UTF-8, and zeros behind them. All zeros
are the empty caption.
"""

from __future__ import annotations

import dataclasses
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import UInt8

#: So many captions of a picture are used, the first ones, and so many bytes of each.
MAX_CAPTIONS = 8
MAX_BYTES = 512

Transform = Callable[[dict[str, Any], np.random.Generator], dict[str, Any]]


def clean(text: str, where: str) -> str:
    """A text as one line, its accents composed (NFC), white space as single spaces.

    Args:
      text: in any script; may be empty.
      where: names it in errors.

    Raises:
      ValueError: control characters, or half of a surrogate pair, which no text has.
    """
    text = " ".join(unicodedata.normalize("NFC", text).split())
    bad = next((c for c in text if unicodedata.category(c) in ("Cc", "Cs")), None)
    if bad is not None:
        raise ValueError(
            f"{where} holds the control character U+{ord(bad):04X}, which is no part of a text; "
            "remove it."
        )
    return text


def encode(text: str, length: int) -> UInt8[np.ndarray, " {length}"]:
    """The UTF-8 of a text, as many whole characters as fit, and zeros behind it."""
    cut = text.encode()[:length].decode(errors="ignore").encode()
    row = np.zeros(length, np.uint8)
    row[: len(cut)] = np.frombuffer(cut, np.uint8)
    return row


def rows(texts: Sequence[str]) -> UInt8[np.ndarray, "n T"]:
    """Texts, cleaned, as captions of MAX_BYTES.

    Raises:
      ValueError: see `clean`.
    """
    found = [encode(clean(text, f"The prompt {text!r}"), MAX_BYTES) for text in texts]
    return np.array(found, np.uint8).reshape(-1, MAX_BYTES)


def decode(row: UInt8[np.ndarray, " T"]) -> str:
    """The text of a caption."""
    return bytes(row).rstrip(b"\0").decode()


def read_prompts(path: epath.PathLike) -> list[str]:
    """The lines of a file of prompts; an empty line is the empty prompt.

    Raises:
      FileNotFoundError: no such file.
      ValueError: it is empty, or no UTF-8 text.
    """
    try:
        text = epath.Path(path).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is no UTF-8 text (byte {error.start}); save the prompts as UTF-8."
        ) from None
    lines = text.removesuffix("\n").split("\n")
    if not text:
        raise ValueError(f"{path} is empty; write one prompt per line.")
    return [clean(line, f"Line {number} of {path}") for number, line in enumerate(lines, 1)]


@dataclasses.dataclass(frozen=True)
class OneCaption:
    """A transform that gives an example one of its captions, as the field "caption".

    Attributes:
      rest: makes the other fields of the record; None takes them as they are.
      length: T, in bytes; 0 leaves captions out.
      drawn: by the example's random numbers, as in training; else it is the first.
      write: makes other fields of the text; None is "caption".
    """

    rest: Transform | None
    length: int
    drawn: bool
    write: Callable[[str], dict[str, Any]] | None = None

    def __call__(self, record: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        record, captions = _parted(record)
        caption = {}
        if self.length or self.write:
            number = int(rng.integers(len(captions))) if self.drawn and captions else 0
            text = captions[number] if captions else ""
            bytes_ = {"caption": encode(text, self.length)} if self.length else {}
            caption = bytes_ if self.write is None else self.write(text)
        return (record if self.rest is None else self.rest(record, rng)) | caption


@dataclasses.dataclass(frozen=True)
class AllCaptions:
    """A transform that gives an example all captions, as uint8 [MAX_CAPTIONS, MAX_BYTES]: the field
    "captions", which a token cache stores.

    Attributes:
      rest: see `OneCaption`.
    """

    rest: Transform | None

    def __call__(self, record: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        record, captions = _parted(record)
        rows = np.zeros((MAX_CAPTIONS, MAX_BYTES), np.uint8)
        for row, text in zip(rows, captions, strict=False):
            row[:] = encode(text, MAX_BYTES)
        return (record if self.rest is None else self.rest(record, rng)) | {"captions": rows}


def pack(captions: UInt8[np.ndarray, "M T"]) -> bytes:
    """The captions of one picture without padding, as a token cache stores them."""
    return b"\0".join(bytes(row).rstrip(b"\0") for row in captions if row.any())


def unpack(data: bytes) -> tuple[str, ...]:
    """The inverse of `pack`, as texts."""
    return tuple(text.decode() for text in data.split(b"\0")) if data else ()


def _parted(record: dict[str, Any]) -> tuple[dict[str, Any], Sequence[str]]:
    """The record without its captions, and those of them that are used."""
    rest = {name: value for name, value in record.items() if name != "captions"}
    return rest, record["captions"][:MAX_CAPTIONS]
