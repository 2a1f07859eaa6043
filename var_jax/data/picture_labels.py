"""Lists that say which class each picture is, for pictures that do not lie in class folders."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Sequence

import numpy as np
from etils import epath
from jaxtyping import Int

_HELP = (
    "give one class per line in the order of the file names, or lines of file name and class (text "
    "or csv, such as Kaggle's LOC_val_solution.csv)"
)


def read_labels(
    path: epath.PathLike, pictures: Sequence[str], class_names: Sequence[str]
) -> Int[np.ndarray, " n"]:
    """The label of each picture, from a list that someone else has made.

    Known forms: one class per line, in the order of the sorted file names; or a file name (with or
    without folder and ending) and its class, one pair per line, separated by a comma, tab or
    space, where the class is the second column's first word if the whole column is no class. A
    heading is passed over. A class is one of `class_names`; numbers are taken as labels only if 0
    is among them, since lists that count from 1 (ImageNet's development kit) are in another order.

    Args:
      path: local or gs:// text file.
      pictures: paths of the pictures, sorted by their base names where the list has no names.
      class_names: in label order.

    Raises:
      FileNotFoundError: no such file.
      ValueError: another form, another number of lines, a class or a picture that is not there,
        a picture that is named twice or not at all.
    """
    lines = _read_lines(path)
    numbers = {name: label for label, name in enumerate(class_names)}
    if all(line in numbers for line in lines):
        return _by_order(path, lines, pictures, numbers)
    if all(re.fullmatch("[0-9]+", line) for line in lines):
        return _by_order(path, lines, pictures, _as_labels(path, lines, len(class_names)))
    return _by_name(path, lines, pictures, numbers)


def check_all(path: epath.PathLike, classes: Sequence[str], class_names: Sequence[str]) -> None:
    """Raises ValueError naming the first of `classes` that is not in `class_names`."""
    unknown = sorted(set(classes) - set(class_names))
    if unknown:
        raise ValueError(
            f"The label {unknown[0]!r} of {path} is no class of the training set ({class_names[0]}"
            f", ...); {_HELP}."
        )


def _read_lines(path: epath.PathLike) -> list[str]:
    file = epath.Path(path)
    if not file.exists() or file.is_dir():
        raise FileNotFoundError(f"The file of labels {path} does not exist; {_HELP}.")
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"The file of labels {path} is no UTF-8 text; {_HELP}.") from None
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines or "\0" in text:
        raise ValueError(f"The file of labels {path} holds no line of text; {_HELP}.")
    return lines


def _as_labels(path: epath.PathLike, words: Sequence[str], count: int) -> dict[str, int]:
    values = {word: int(word) for word in words}
    if 0 not in values.values() or max(values.values()) >= count:
        low, high = min(values.values()), max(values.values())
        raise ValueError(
            f"The labels of {path} are numbers {low}..{high}, and not 0..{count - 1}: lists that "
            "count from 1, such as ILSVRC2012_validation_ground_truth.txt, number the classes in "
            f"another order; {_HELP}, with names of classes."
        )
    return values


def _by_order(
    path: epath.PathLike, lines: list[str], pictures: Sequence[str], numbers: dict[str, int]
) -> np.ndarray:
    if len(lines) != len(pictures):
        raise ValueError(
            f"{path} has labels of {len(lines)} pictures, but there are {len(pictures)} pictures."
        )
    names = [os.path.basename(picture) for picture in pictures]
    order = sorted(range(len(names)), key=lambda i: names[i])
    natural = sorted(order, key=lambda i: _natural(names[i]))
    if order != natural or len(set(names)) != len(names):
        first = next((i for i, j in zip(order, natural, strict=True) if i != j), 0)
        raise ValueError(
            f"{path} has one class per line and no file names, but the pictures have no order that "
            f"is certain ({names[first]!r} has two places, by its letters and by its number); give "
            "lines of file name and class."
        )
    labels = np.empty(len(pictures), np.int64)
    labels[order] = [numbers[line] for line in lines]
    return labels


def _natural(name: str) -> list[tuple[str, int]]:
    return [(text, int(part or -1)) for text, part in re.findall(r"([^0-9]*)([0-9]*)", name)]


def _by_name(
    path: epath.PathLike, lines: list[str], pictures: Sequence[str], numbers: dict[str, int]
) -> np.ndarray:
    places = _places(pictures)
    rows = [_columns(line) for line in lines]
    # The column that holds names of files: the one in which most of the lines have one.
    columns = range(min(2, max(len(row) for row in rows)))
    hits = [sum(len(row) > c and row[c] in places for row in rows) for c in columns]
    if not any(hits):
        if len(lines) == len(pictures):
            check_all(path, lines, list(numbers))
        raise ValueError(
            f"{path} names no picture and no class in its lines ({lines[0][:60]!r}); {_HELP}."
        )
    column = hits.index(max(hits))
    first = rows[0]
    if len(first) == 1 or (first[column] not in places and _class(first, column) not in numbers):
        rows, lines = rows[1:], lines[1:]  # A heading.
    words = []
    found: dict[int, int] = {}
    for row, line in zip(rows, lines, strict=True):
        if len(row) < 2:
            raise ValueError(f"The line {line[:60]!r} of {path} has no file name and class.")
        place = places.get(row[column])
        if place is None or place < 0:
            why = "is no picture there" if place is None else "is the name of several pictures"
            raise ValueError(f"{row[column]!r} of {path} {why}.")
        if place in found:
            raise ValueError(f"{path} names {row[column]!r} twice.")
        found[place] = len(words)
        whole = row[1 - column]
        words.append(whole if whole in numbers else _class(row, column))
    missing = [picture for i, picture in enumerate(pictures) if i not in found]
    if missing:
        raise ValueError(
            f"{path} has no label for {missing[0]!r} ({len(missing)} of {len(pictures)} pictures); "
            "add the lines or remove the pictures."
        )
    if all(re.fullmatch("[0-9]+", word) for word in words) and not set(words) <= set(numbers):
        numbers = _as_labels(path, words, len(numbers))
    check_all(path, words, list(numbers))
    return np.array([numbers[words[found[i]]] for i in range(len(pictures))], np.int64)


def _class(row: Sequence[str], column: int) -> str:
    """The first word of the column beside that of the file names."""
    return (row[1 - column].split() or [""])[0]


def _columns(line: str) -> list[str]:
    """File name and the rest, in the order of the line."""
    if "," in line:
        try:
            row = next(csv.reader([line]))
        except csv.Error:
            row = line.split(",")
    elif "\t" in line:
        row = line.split("\t")
    else:
        row = line.split(None, 1)
    return [column.strip() for column in row]


def _places(pictures: Sequence[str]) -> dict[str, int]:
    """Which picture each way of naming it means; -1 where it means several."""
    places: dict[str, int] = {}
    for i, picture in enumerate(pictures):
        base = os.path.basename(picture)
        for name in {picture, base, os.path.splitext(base)[0]}:
            places[name] = i if places.get(name, i) == i else -1
    return places
