"""Scores over a grid of sampling settings: a folder a combination, a table and curves.

Guidance trades variety for quality: what published numbers of a model mean shows in the curve
only, not at one point of it.
"""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import logging
from etils import epath

from var_jax.evaluation.report import line_plots, markdown_table
from var_jax.paths import write_bytes, write_json, write_text

#: What can be swept, and of which kind its values are.
KINDS: dict[str, Callable[[str], Any]] = {
    "cfg": float,
    "top_k": int,
    "top_p": float,
    "temperature": float,
    "cfg_schedule": str,
}
COLUMNS = {
    "fid": "FID",
    "sfid": "sFID",
    "inception_score": "IS",
    "precision": "precision",
    "recall": "recall",
    "kid": "KID",
}
CURVES = ("fid", "inception_score", "precision", "recall")
Combination = Mapping[str, Any]


def parse_terms(text: str) -> dict[str, tuple[Any, ...]]:
    """'cfg=1.0,1.5 top_p=0.9,0.96' -> {'cfg': (1.0, 1.5), 'top_p': (0.9, 0.96)}.

    Raises:
      ValueError: one sentence.
    """
    terms: dict[str, tuple[Any, ...]] = {}
    for term in text.split():
        name, equals, values = term.partition("=")
        if not equals or name not in KINDS or name in terms:
            raise ValueError(
                f"--sweep has the term {term!r}; give each of {', '.join(KINDS)} at most once, as "
                "in 'cfg=1.0,1.5,2.0 top_p=0.9,0.96'."
            )
        try:
            found = tuple(KINDS[name](value) for value in values.split(","))
        except ValueError:
            raise ValueError(
                f"--sweep has {term!r}, but {name} takes numbers separated by commas."
            ) from None
        if len(set(found)) < len(found):
            raise ValueError(f"--sweep has a value twice in {term!r}.")
        terms[name] = found
    if not terms:
        raise ValueError("--sweep is empty; give terms such as 'cfg=1.0,1.5,2.0'.")
    return terms


def combinations(terms: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """All of them, the last term changing fastest."""
    return [dict(zip(terms, values, strict=True)) for values in itertools.product(*terms.values())]


def folder_name(combination: Combination) -> str:
    """E.g. 'cfg1.5_top_p0.96'."""
    return "_".join(f"{name}{_text(value)}" for name, value in combination.items())


def run_sweep(
    output: epath.PathLike,
    terms: Mapping[str, Sequence[Any]],
    run: Callable[[Combination, epath.Path], dict[str, Any] | None],
    *,
    write: bool = True,
) -> list[dict[str, Any]] | None:
    """Runs every combination in its own folder; what is scored already is not run again.

    Args:
      output: folder; gets sweep.json, sweep.md and sweep.png after each combination.
      terms: name -> values.
      run: combination, folder -> its scores, or None where it was stopped. It has to find out
        by itself what is done.
      write: whether this process writes the files.

    Returns:
      for each combination {'name', 'settings', 'scores'}, or None where it was stopped.
    """
    output = epath.Path(output)
    rows: list[dict[str, Any]] = []
    drawn = importlib.util.find_spec("matplotlib") is not None
    if write and not drawn:
        logging.warning("The package matplotlib is not installed: no sweep.png.")
    for combination in combinations(terms):
        name = folder_name(combination)
        scores = run(combination, output / name)
        if scores is None:
            return None
        rows.append({"name": name, "settings": dict(combination), "scores": scores})
        if write:
            terms_json = {key: list(values) for key, values in terms.items()}
            write_json(output / "sweep.json", {"terms": terms_json, "runs": rows})
            write_text(output / "sweep.md", table(terms, rows))
            if drawn:
                write_bytes(output / "sweep.png", picture(terms, rows))
    return rows


def table(terms: Mapping[str, Sequence[Any]], rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: a row per combination, the lowest FID marked."""
    shown = [c for c in COLUMNS if any(r["scores"].get(c) is not None for r in rows)]
    fids = [r["scores"]["fid"] for r in rows if r["scores"].get("fid") is not None]
    lines = []
    for row in rows:
        cells = [_text(row["settings"][name]) for name in terms]
        for column in shown:
            value = row["scores"].get(column)
            text = "" if value is None else f"{value:.4g}"
            best = column == "fid" and value == min(fids)
            cells.append(f"**{text}**" if best else text)
        lines.append(cells)
    scores = markdown_table([*terms, *(COLUMNS[c] for c in shown)], lines, "---:")
    title = f"# Sweep over {', '.join(terms)}"
    return "\n\n".join([title, _sentence(rows), scores, "![Curves](sweep.png)\n"])


def picture(terms: Mapping[str, Sequence[Any]], rows: Sequence[Mapping[str, Any]]) -> bytes:
    """PNG: each score over the first term, a line for each combination of the others."""
    axis, *others = terms
    panels: dict[str, dict[str, list[tuple[Any, float]]]] = {}
    for column in CURVES:
        for row in rows:
            value = row["scores"].get(column)
            if value is not None:
                label = ", ".join(f"{n} {_text(row['settings'][n])}" for n in others)
                lines = panels.setdefault(COLUMNS[column], {})
                lines.setdefault(label, []).append((row["settings"][axis], value))
    for lines in panels.values():
        for points in lines.values():
            points.sort(key=lambda point: point[0])
    return line_plots(panels, axis)


def _sentence(rows: Sequence[Mapping[str, Any]]) -> str:
    scores = rows[0]["scores"]
    return (
        f"{scores.get('num_samples', 0)} samples per row, against {scores.get('reference', '')}; "
        f"{scores.get('evaluator', '')}. Every row has its manifest.json in the folder of its "
        "settings."
    )


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
