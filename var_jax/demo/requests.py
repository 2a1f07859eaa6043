"""What a browser asks for: read from JSON, checked value by value before anything is drawn."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from var_jax.data import captions
from var_jax.demo.explorer import SETTINGS, Explorer

#: Lowest and highest value of each setting; of top_k V is the highest.
RANGES = {"cfg": (0.0, 20.0), "top_k": (0, None), "top_p": (0.0, 1.0), "temperature": (0.01, 10.0)}
#: A mask has at most so many cells a side.
MASK_SIDE = 32
MAX_SEED = 2**32 - 1


@dataclasses.dataclass(frozen=True)
class Drawing:
    """A picture to draw; see `Explorer.draw`."""

    asked: int | str
    seed: int
    negative: str = ""
    pins: Mapping[int, int] = dataclasses.field(default_factory=dict)
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Painting:
    """A drawing of which a part is drawn anew; see `Explorer.paint`.

    Attributes:
      drawing: the picture.
      cells: bool [h, w] of `mask_shape`, true where it is drawn anew.
      asked, seed: of what is drawn there.
    """

    drawing: Drawing
    cells: np.ndarray
    asked: int | str
    seed: int


def mask_shape(explorer: Explorer) -> tuple[int, int]:
    """(h, w) of a mask's cells, each of as many pixels as the other."""
    height, width, _ = explorer.model.image_shape
    return math.gcd(height, MASK_SIDE), math.gcd(width, MASK_SIDE)


def mask_of(cells: np.ndarray, explorer: Explorer) -> np.ndarray:
    """bool [H, W]: the pixels of a mask's cells."""
    size = (n // m for n, m in zip(explorer.model.image_shape[:2], cells.shape, strict=True))
    return np.kron(cells, np.ones(tuple(size), bool)).astype(bool)


def read_drawing(given: Any, explorer: Explorer) -> Drawing:
    """A drawing from {label, seed, pins?: [[position, code], ...], cfg?, top_k?, ...}; of a model
    of text prompt and negative? are in the place of label.

    Raises:
      ValueError: a field is unknown, missing or out of range.
    """
    fields = [*(["prompt", "negative"] if explorer.prompt_bytes else ["label"]), "seed"]
    given = _fields(given, fields if explorer.reason else [*fields, "pins", *SETTINGS])
    return Drawing(
        _asked(given, explorer),
        whole("seed", given.get("seed"), 0, MAX_SEED),
        _text("negative", given.get("negative", ""), explorer),
        _pins(given.get("pins", []), explorer),
        {name: _setting(name, given[name], explorer) for name in SETTINGS if name in given},
    )


def read_painting(given: Any, explorer: Explorer) -> Painting:
    """A painting from {drawing: {...}, mask, label or prompt, seed}.

    The mask is in hexadecimal, a bit for each of its cells, row by row from the top, the first cell
    the highest bit.

    Raises:
      ValueError: a field is unknown, missing or out of range.
    """
    kind = "prompt" if explorer.prompt_bytes else "label"
    given = _fields(given, ["drawing", "mask", kind, "seed"])
    shape, mask = mask_shape(explorer), given.get("mask")
    if isinstance(mask, str) and not mask.strip("0"):
        raise ValueError("mask is empty; brush over what is to be drawn anew first.")
    count = math.prod(shape)
    digits = 2 * math.ceil(count / 8)
    try:
        data = bytes.fromhex(mask)
    except (TypeError, ValueError):
        data = b""
    if len(data) * 2 != digits or len(mask) != digits:
        raise ValueError(
            f"mask is no mask of this model: give {digits} hexadecimal digits, a bit for each of "
            f"{shape[0]} x {shape[1]} cells."
        )
    cells = np.unpackbits(np.frombuffer(data, np.uint8), count=count).reshape(shape).astype(bool)
    return Painting(
        read_drawing(given.get("drawing"), explorer),
        cells,
        _asked(given, explorer),
        whole("seed", given.get("seed"), 0, MAX_SEED),
    )


def _fields(given: Any, known: list[str]) -> dict[str, Any]:
    if not isinstance(given, dict):
        raise ValueError(f"The request must be JSON of the fields {', '.join(known)}.")
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise ValueError(f"Unknown field {unknown[0][:40]!r}; this model takes {', '.join(known)}.")
    return given


def _asked(given: Mapping[str, Any], explorer: Explorer) -> int | str:
    """A label, or the text of a prompt."""
    if explorer.prompt_bytes:
        return _text("prompt", given.get("prompt"), explorer)
    return whole("label", given.get("label"), 0, explorer.model.num_classes)


def _text(name: str, value: Any, explorer: Explorer) -> str:
    """A text that the model reads whole."""
    if not isinstance(value, str):
        raise ValueError(f"{name} is {_shown(value)}; give a text.")
    text = captions.clean(value, name)
    if len(text.encode()) > explorer.prompt_bytes:
        raise ValueError(
            f"{name} has {len(text.encode())} bytes, of which this model reads "
            f"{explorer.prompt_bytes}; make it shorter."
        )
    return text


def whole(name: str, value: Any, low: int, high: int) -> int:
    """A whole number in low..high, or ValueError with a sentence."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"{name} is {_shown(value)}; give a whole number from {low} to {high}.")
    return value


def _number(name: str, value: Any, low: float, high: float) -> float:
    known = isinstance(value, int | float) and not isinstance(value, bool)
    if not known or not low <= value <= high:  # NaN is in no range.
        raise ValueError(f"{name} is {_shown(value)}; give a number from {low:g} to {high:g}.")
    return float(value)


def _setting(name: str, value: Any, explorer: Explorer) -> Any:
    """A number, or a tuple of one for each level."""
    low, high = RANGES[name]
    high = explorer.vocab_size if high is None else high
    read = whole if name == "top_k" else _number
    if not isinstance(value, list):
        return read(name, value, low, high)
    count = explorer.pyramid.num_levels
    if len(value) != count:
        raise ValueError(
            f"{name} has {len(value)} values; give one number, or {count}, one for each level."
        )
    return tuple(read(f"{name} of level {k + 1}", x, low, high) for k, x in enumerate(value))


def _pins(value: Any, explorer: Explorer) -> dict[int, int]:
    length, size = explorer.pyramid.length, explorer.vocab_size
    pairs = isinstance(value, list) and all(isinstance(x, list) and len(x) == 2 for x in value)
    if not pairs or len(value) > length:
        raise ValueError(
            f"pins is {_shown(value)}; give at most {length} pairs [position, code] in a list."
        )
    return {
        whole("The position of a pin", position, 0, length - 1): whole(
            "The code of a pin", code, 0, size - 1
        )
        for position, code in value
    }


def _shown(value: Any) -> str:
    """A value for a sentence, which it must not fill."""
    if value is None:
        return "missing"
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."
