"""The tables, curves and pictures of a comparison."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from etils import epath

from var_jax import paths
from var_jax.evaluation.report import line_plots, markdown_table

_NOTES = """\
{runs}
Loss: nats per token of held-out tokens; in brackets where the tokenizer is another one, whose \
tokens say more or less, so that the numbers cannot be compared; = names the method whose trained \
model it is. Label accuracy, Frechet distance: by a classifier of the real pictures, which gets \
{real[label_accuracy]:.3f} of real held-out ones right; the distance of real training pictures is \
{real[frechet_distance]:.3g}. Diversity: pixel deviation within a class over that of real pictures.
Tokens: of all training examples, passed over; examples: how many pictures those were. Operations \
are those of the matrix products by formula (a training step of the whole batch) and by the traced \
program (drawing an image, without the tokenizer). Passes of a transformer and bytes of cache, the \
most that one pass hands to the next, are those of one image, guidance included. Times hang on the \
machine and on what else it did."""


def write_report(workdir: epath.PathLike, methods: Sequence[str], seeds: Sequence[int]) -> None:
    """Writes comparison.json, comparison.md, curves.png and samples_METHOD.png (of the first seed).

    Args:
      workdir: of the comparison, in which these runs are complete.
      methods: names, in order; the first is what the others are compared with.
      seeds: of the runs.
    """
    folder = epath.Path(workdir)
    runs = {
        name: [json.loads((folder / name / str(s) / "scores.json").read_text()) for s in seeds]
        for name in methods
    }
    real = json.loads((folder / "data.json").read_text())
    tokenizers = {found[0]["tokenizer"]: {} for found in runs.values()}
    for name in tokenizers:
        file = folder / "tokenizers" / name / "scores.json"
        tokenizers[name] = json.loads(file.read_text())
    paths.write_text(folder / "comparison.md", tables(runs, tokenizers, real))
    paths.write_bytes(folder / "curves.png", _curves(runs))
    for name in methods:
        picture = (folder / name / str(seeds[0]) / "samples.png").read_bytes()
        paths.write_bytes(folder / f"samples_{name}.png", picture)
    values = {"real": real, "tokenizers": tokenizers, "runs": runs}
    # Last, so that its presence says that the rest is there.
    paths.write_json(folder / "comparison.json", values)


def tables(
    runs: dict[str, list[dict[str, Any]]],
    tokenizers: dict[str, dict[str, float]],
    real: dict[str, float],
) -> str:
    """The results in Markdown.

    Args:
      runs: scores of each seed by method, see `Scorer` and `trained`.
      tokenizers: scores of each tokenizer by the first method that has it.
      real: scores of real pictures.
    """
    first = next(iter(runs))

    def loss(found: list[dict[str, Any]]) -> str:
        training, name = found[0]["training"], found[0]["method"]
        if training != name:
            return f"= {training}"
        value = spread(found, "held_out_loss")
        return value if found[0]["tokenizer"] == runs[first][0]["tokenizer"] else f"({value})"

    quality = [
        (
            name,
            found[0]["tokenizer"],
            f"{found[0]['parameters'] / 1e6:.2f}",
            loss(found),
            *(spread(found, key) for key in ("label_accuracy", "frechet_distance", "diversity")),
        )
        for name, found in runs.items()
    ]
    costs = [
        (
            name,
            f"{found[0]['tokens_seen'] / 1e3:,.0f}",
            f"{found[0]['images_seen'] / 1e3:,.1f}",
            f"{found[0]['step_flops'] / 1e9:.2f}",
            _median(found, lambda run: 1e3 * run["step_seconds"]),
            f"{found[0]['sample_flops'] / 1e6:,.0f}",
            _median(found, lambda run: 1e3 * run["sample_seconds"]),
            found[0]["passes"],
            f"{found[0]['cache_bytes'] / 1024:,.1f}",
        )
        for name, found in runs.items()
    ]
    count = len(runs[first])
    many = f"Means over {count} runs, +- half of the range."
    one = "One run of each method, which says nothing of the spread."
    notes = _NOTES.format(runs=many if count > 1 else one, real=real)
    quality_names = ("method", "tokenizer", "million parameters", "loss", "label accuracy")
    return "\n\n".join(
        [
            "# Methods compared",
            notes,
            markdown_table((*quality_names, "Frechet distance", "diversity"), quality),
            markdown_table(
                (
                    *("method", "thousand tokens", "thousand examples", "GFLOP a step"),
                    *("ms a step", "MFLOP an image", "ms an image", "passes", "KiB of cache"),
                ),
                costs,
            ),
            markdown_table(
                ("tokenizer", "million parameters", "PSNR, dB", "Frechet distance"),
                [
                    (
                        name,
                        f"{found['parameters'] / 1e6:.2f}",
                        found["psnr"],
                        found["frechet_distance"],
                    )
                    for name, found in tokenizers.items()
                ],
            ),
            "",
        ]
    )


def spread(found: Sequence[dict[str, Any]], key: str) -> str:
    """Mean +- half of the range over runs, to the digits that the range leaves."""
    values = np.array([run[key] for run in found], float)
    mean, half = values.mean(), np.ptp(values) / 2
    if len(values) == 1:
        return f"{mean:.3g}" if mean >= 1 else f"{mean:.3f}"
    digits = 3 if mean < 10 else 1
    return f"{mean:.{digits}f} +- {half:.{digits}f}"


def _median(found: Sequence[dict[str, Any]], value: Callable[[dict[str, Any]], float]) -> str:
    return f"{np.median([value(run) for run in found]):.3g}"


def _curves(runs: dict[str, list[dict[str, Any]]]) -> bytes:
    """Held-out loss over tokens seen, the mean of the runs, a panel for each tokenizer."""
    panels: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for name, found in runs.items():
        if found[0]["training"] != name:
            continue
        curves = np.mean([run["curve"] for run in found], axis=0)
        label = f"held-out loss, tokenizer of {found[0]['tokenizer']}"
        panels.setdefault(label, {})[name] = [(float(x) / 1e3, float(y)) for x, y in curves]
    return line_plots(panels, "thousand tokens seen in training")
