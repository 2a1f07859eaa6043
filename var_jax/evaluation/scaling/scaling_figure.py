"""The figure and the tables of a scaling study."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from var_jax.evaluation.report import markdown_table
from var_jax.evaluation.scaling.scaling_law import QUANTITIES, Curve, frontier, law_from_dict

TITLES = {
    "loss_mean": "loss, all levels",
    "loss_last": "loss, last level",
    "error_mean": "token error, all levels",
    "error_last": "token error, last level",
}
KINDS = {"power_law": "(x / x0)^a", "with_floor": "L_inf + (x / x0)^a"}
_STYLES = {"power_law": "-", "with_floor": "--"}


def draw(curves: Sequence[Curve], fits: Mapping[str, Any], x_name: str = "parameters N") -> bytes:
    """Loss and error against size (above) and against training compute (below), as a PNG.

    Args:
      curves: of the sizes.
      fits: of `scaling_law.analyse`.
      x_name: what the curves' parameters count.
    """
    from matplotlib.figure import Figure

    curves = sorted(curves, key=lambda curve: curve.parameters)
    figure = Figure(figsize=(15, 7), dpi=110, layout="constrained")
    axes = figure.subplots(2, 4)
    colours = [f"C{i % 10}" for i in range(len(curves))]
    for column, name in enumerate(QUANTITIES):
        above, below = axes[:, column]
        for curve, colour in zip(curves, colours, strict=True):
            value = curve.values[name]
            above.plot(curve.parameters, value[-1], "o", color=colour, markersize=7)
            below.plot(curve.compute, value, color=colour, linewidth=1.2, label=curve.name)
        compute = np.concatenate([c.compute for c in curves])
        values = np.concatenate([c.values[name] for c in curves])
        best = frontier(compute, values)
        below.plot(compute[best], values[best], "k.", markersize=4, label="frontier")
        sizes = np.array([c.parameters for c in curves], np.float64)
        for axis, x, found in (
            (above, sizes, fits["parameters"][name]),
            (below, compute[best], fits["compute"][name]),
        ):
            for kind, style in _STYLES.items():
                if found[kind] is not None and found[kind]["log_x0"] is not None:
                    line = np.geomspace(x.min(), x.max(), 100)
                    law = law_from_dict(found[kind])
                    axis.plot(line, law(line), style, color="0.4", linewidth=1)
            if found["power_law"] is not None:
                fitted = found["power_law"]
                axis.text(
                    0.97,
                    0.95,
                    f"a = {fitted['exponent']:.3g}\nr = {_number(fitted['correlation'])}",
                    transform=axis.transAxes,
                    ha="right",
                    va="top",
                )
            axis.set(xscale="log", yscale="log", title=TITLES[name])
            for formatter in (axis.yaxis.set_major_formatter, axis.yaxis.set_minor_formatter):
                formatter("{x:.3g}")
            axis.grid(alpha=0.3, which="both")
        low, high = values[best].min(), values.max()
        below.set(ylim=(0.97 * low, 1.03 * high), xlabel="training compute C (FLOPs)")
        above.set_xlabel(x_name)
    axes[1, 0].legend(frameon=False, fontsize=8)
    for row in axes:
        row[0].set_ylabel("nats per token")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def tables(values: Mapping[str, Any]) -> str:
    """Markdown: the sizes, then the fits.

    Args:
      values: of scaling.json.
    """
    lines = ["# Scaling laws", ""]
    for note in values["notes"]:
        lines += [note, ""]
    lines += ["## Sizes", ""]
    header = ["size", "depth", "width", "N blocks", "N all", "FLOPs", *TITLES.values()]
    rows = [
        [
            size["name"],
            size["depth"],
            size["width"],
            f"{size['block_parameters']:,}",
            f"{size['parameters']:,}",
            f"{size['training_flops']:.3g}",
            *(f"{size[name]:.4f}" for name in QUANTITIES),
        ]
        for size in values["sizes"]
    ]
    lines.append(markdown_table(header, rows))
    for axis, title in (("parameters", "parameters"), ("compute", "training compute")):
        header = ["quantity", "law", "a", "x0", "L_inf", "r", "relative error", "points"]
        rows = []
        for name in QUANTITIES:
            for kind, law in KINDS.items():
                found = values["fits"][axis][name][kind]
                if found is None:
                    rows.append([TITLES[name], law, *["too few points"], *[""] * 5])
                    continue
                shown = [
                    f"{_number(found[key])} {_interval(found[key + '_interval'])}"
                    for key in ("exponent", "x0", "floor")
                ]
                shown[2] = shown[2] if kind == "with_floor" else "0"
                rows.append(
                    [
                        TITLES[name],
                        law,
                        *shown,
                        _number(found["correlation"], 4),
                        _number(found["relative_error"], 2),
                        found["num_points"],
                    ]
                )
        lines += ["", f"## In {title}", "", markdown_table(header, rows)]
    falls = values["fits"]["monotone"]
    rows = [[TITLES[name], "yes" if falls[name] else "no"] for name in QUANTITIES]
    lines += ["", "## Falls from size to size", "", markdown_table(["quantity", "always"], rows)]
    return "\n".join(lines) + "\n"


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}g}"


def _interval(values: Sequence[float | None]) -> str:
    return f"[{', '.join(map(_number, values))}]"
