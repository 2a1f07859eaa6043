"""Captions of pictures in folders: files of text beside them, or one list of all."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator, Sequence
from concurrent import futures

import numpy as np
from etils import epath

from var_jax.data.captions import clean, unpack
from var_jax.data.class_folders import printable, same_name

#: Lists of captions, as Hugging Face's `imagefolder` reads them.
LISTS = ("metadata.jsonl", "metadata.csv")
#: What such files count as among those that are no pictures, see `class_folders.ending`.
CAPTION_FILES = (".txt files", ".jsonl files", ".csv files")
_HELP = (
    "give each picture x.png a file x.txt beside it with one caption per line, or all of them "
    f'lines of {LISTS[0]} such as {{"file_name": "a/x.png", "text": "a red bird"}}'
)


class CaptionTable:
    """The captions of many pictures, as one array: a list of them is slow to send to workers.

    Args:
      captions: of each picture.
    """

    def __init__(self, captions: Sequence[Sequence[str]]) -> None:
        packed = ["\0".join(texts).encode() for texts in captions]
        self._text, self._ends = b"".join(packed), np.cumsum([0, *map(len, packed)])

    def __getitem__(self, index: int) -> tuple[str, ...]:
        return unpack(self._text[self._ends[index] : self._ends[index + 1]])


def read_captions(root: epath.PathLike, pictures: Sequence[str]) -> list[tuple[str, ...]]:
    """The captions of each picture: from a list in `root` if there is one, else from text files.

    Args:
      root: local or gs:// folder.
      pictures: their paths below it.

    Raises:
      ValueError: a picture without caption, a line that names no picture or is no JSON, two lists,
        bytes that are not UTF-8, or control characters.
    """
    lists = {name: _read(os.path.join(os.fspath(root), name)) for name in LISTS}
    there = [(name, data) for name, data in lists.items() if data is not None]
    if len(there) > 1:
        raise ValueError(f"{printable(os.fspath(root))} has {' and '.join(LISTS)}; remove one.")
    for name, data in there:
        return _from_list(os.path.join(os.fspath(root), name), data, pictures)
    paths = [os.path.splitext(os.path.join(os.fspath(root), name))[0] + ".txt" for name in pictures]
    with futures.ThreadPoolExecutor(16) as pool:
        found = list(pool.map(_from_file, paths))
    missing = [name for name, texts in zip(pictures, found, strict=True) if texts is None]
    if missing:
        raise ValueError(
            f"{printable(missing[0])!r} of {printable(os.fspath(root))} has no caption "
            f"({len(missing)} of {len(pictures)} pictures); {_HELP}."
        )
    return [texts for texts in found if texts is not None]


def _from_file(path: str) -> tuple[str, ...] | None:
    """One caption per line; None where there is no such file."""
    data = _read(path)
    return None if data is None else caption_lines(data, path)


def caption_lines(data: bytes, path: str) -> tuple[str, ...]:
    """The captions of a file of text, one per line.

    Args:
      data: its bytes.
      path: names it in errors.

    Raises:
      ValueError: no line with text, bytes that are not UTF-8, or control characters.
    """
    texts = tuple(clean(line, where) for where, line in _lines(path, data))
    if not texts:
        raise ValueError(f"{printable(path)} holds no caption; write one per line.")
    return texts


def _from_list(path: str, data: bytes, pictures: Sequence[str]) -> list[tuple[str, ...]]:
    places = {same_name(name): i for i, name in enumerate(pictures)}
    found: list[list[str]] = [[] for _ in pictures]
    entries = _table if path.endswith(".csv") else _objects
    for where, name, texts in entries(path, data):
        place = places.get(same_name(os.path.normpath(name)))
        if place is None:
            raise ValueError(
                f"{where} names {name!r}, which is no picture there; correct the line or remove it."
            )
        found[place] += [clean(text, where) for text in texts]
    missing = [name for name, texts in zip(pictures, found, strict=True) if not any(texts)]
    if missing:
        raise ValueError(
            f"{printable(path)} has no caption for {printable(missing[0])!r} ({len(missing)} of "
            f"{len(pictures)} pictures); add lines, or remove the pictures."
        )
    return [tuple(filter(None, texts)) for texts in found]


def _objects(path: str, data: bytes) -> Iterator[tuple[str, str, list[str]]]:
    """Where each line of JSON stands, its file name and its captions."""
    for where, line in _lines(path, data):
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{where} is no JSON ({error}); {_HELP}.") from None
        name, texts = (isinstance(entry, dict) and entry.get(key) for key in ("file_name", "text"))
        texts = [texts] if isinstance(texts, str) else texts
        if not (isinstance(name, str) and isinstance(texts, list) and texts) or not all(
            isinstance(text, str) for text in texts
        ):
            raise ValueError(f"{where} needs a 'file_name' and a 'text', one or a list of them.")
        yield where, name, texts


def _table(path: str, data: bytes) -> Iterator[tuple[str, str, list[str]]]:
    """As `_objects`, of a file of comma-separated values whose first line names the columns."""
    rows = csv.DictReader(io.StringIO(_text(path, data), newline=""), strict=True)
    try:
        for row in rows:
            where = f"Line {rows.line_num} of {printable(path)}"
            name, text = row.get("file_name"), row.get("text")
            if not name or text is None or None in row:
                raise ValueError(
                    f"{where} needs a value in the columns file_name and text, and no more values "
                    f"than the first line has; that says {', '.join(rows.fieldnames or ())}."
                )
            yield where, name, [text]
    except csv.Error as error:
        raise ValueError(f"After line {rows.line_num} of {printable(path)}: {error}.") from None


def _lines(path: str, data: bytes) -> Iterator[tuple[str, str]]:
    """Where each line with text in it stands, and what it says."""
    for number, line in enumerate(_text(path, data).split("\n"), 1):
        if line.strip():
            yield f"Line {number} of {printable(path)}", line


def _text(path: str, data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{printable(path)} is no UTF-8 text (byte {error.start}); save it as UTF-8."
        ) from None


def _read(path: str) -> bytes | None:
    """None where there is no such file."""
    try:
        return epath.Path(path).read_bytes()
    except FileNotFoundError:
        return None
