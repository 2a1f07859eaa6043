"""A report that is one HTML file: pictures, curves, tables, nothing to load from elsewhere."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
       color: #1c1c1c; background: #fff }
h2 { margin-top: 2.5rem }
table { border-collapse: collapse }
td, th { border-bottom: 1px solid #ccc; padding: .25rem 1rem .25rem 0; text-align: left }
td.number { text-align: right; font-variant-numeric: tabular-nums }
img { max-width: 100%; height: auto }
img.pixels { image-rendering: pixelated }
figure { margin: 1rem 0 } figcaption { color: #555 }
pre { background: #f4f4f4; padding: 1rem; overflow: auto; font-size: .8rem }
"""


def markdown_table(header: Sequence[Any], rows: Iterable[Sequence[Any]], align: str = "---") -> str:
    """A table in Markdown, floats with four digits.

    Args:
      header: names of the columns.
      rows: their cells.
      align: of all columns; '---:' is to the right.
    """
    cells = [[f"{v:.4g}" if isinstance(v, float) else str(v) for v in row] for row in rows]
    lines = [map(str, header), [align] * len(header), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def curves(
    runs: Mapping[str, Sequence[Mapping[str, float]]],
    names: Mapping[str, str],
    ylabel: str,
    log_scale: bool = False,
) -> bytes:
    """Curves over steps as a PNG.

    Args:
      runs: label -> lines of a run's metrics.jsonl.
      names: metric -> what to call it.
      ylabel: of the axis.
      log_scale: logarithmic values.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.5), dpi=110, layout="constrained")
    axes = figure.subplots()
    for label, lines in runs.items():
        for metric, name in names.items():
            points = [(m["step"], m[metric]) for m in lines if m.get(metric) is not None]
            if points:
                text = f"{label} {name}".strip()
                axes.plot(*zip(*points, strict=True), label=text, linewidth=1.5)
    if log_scale:
        axes.set_yscale("log")
    axes.set_xlabel("step")
    axes.set_ylabel(ylabel)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def line_plots(
    panels: Mapping[str, Mapping[str, Sequence[tuple[Any, float]]]], xlabel: str
) -> bytes:
    """Small plots side by side, as a PNG.

    Args:
      panels: label of the upward axis -> label of a line -> its points (x, y).
      xlabel: of the other axis, the same for all.
    """
    from matplotlib.figure import Figure

    columns = min(2, max(1, len(panels)))
    rows = max(1, -(-len(panels) // columns))
    figure = Figure(figsize=(4.5 * columns, 3.2 * rows), dpi=110, layout="constrained")
    for number, (ylabel, lines) in enumerate(panels.items()):
        axes = figure.add_subplot(rows, columns, number + 1)
        for label, points in lines.items():
            axes.plot(*zip(*points, strict=True), marker="o", label=label, linewidth=1.5)
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
        axes.grid(alpha=0.3)
        if any(lines):
            axes.legend(frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


class Report:
    """Collects sections and writes them as one page.

    Args:
      title: of the page.
      introduction: first paragraph, plain text.
    """

    def __init__(self, title: str, introduction: str) -> None:
        self._title = title
        self._parts = [f"<h1>{html.escape(title)}</h1>", f"<p>{html.escape(introduction)}</p>"]

    def heading(self, text: str) -> None:
        """Starts a section."""
        self._parts.append(f"<h2>{html.escape(text)}</h2>")

    def text(self, text: str) -> None:
        """A paragraph."""
        self._parts.append(f"<p>{html.escape(text)}</p>")

    def picture(self, png: bytes, caption: str, width: int | None = None) -> None:
        """A picture; with `width` (in CSS pixels) it is enlarged without smoothing."""
        data = base64.b64encode(png).decode()
        size = f' width="{width}" class="pixels"' if width else ""
        self._parts.append(
            f'<figure><img{size} alt="{html.escape(caption)}" src="data:image/png;base64,{data}">'
            f"<figcaption>{html.escape(caption)}</figcaption></figure>"
        )

    def table(self, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """A table; numbers stand to the right."""

        def cell(value):
            if isinstance(value, float):
                return f'<td class="number">{value:.4g}</td>'
            if isinstance(value, int):
                return f'<td class="number">{value}</td>'
            return f"<td>{html.escape(str(value))}</td>"

        head = "".join(f"<th>{html.escape(h)}</th>" for h in header)
        body = "".join(f"<tr>{''.join(cell(v) for v in row)}</tr>" for row in rows)
        self._parts.append(f"<table><tr>{head}</tr>{body}</table>")

    def preformatted(self, text: str) -> None:
        """Text as it stands."""
        self._parts.append(f"<pre>{html.escape(text)}</pre>")

    def render(self) -> str:
        """The page."""
        return (
            '<!doctype html><html lang="en"><head><meta charset="utf-8">'
            f"<title>{html.escape(self._title)}</title><style>{_STYLE}</style></head><body>"
            + "\n".join(self._parts)
            + "</body></html>\n"
        )


class MarkdownReport:
    """The same sections as a Markdown file with its pictures beside it.

    Args:
      title: of the page.
      introduction: first paragraph, plain text.
    """

    def __init__(self, title: str, introduction: str) -> None:
        self._parts = [f"# {title}", introduction]
        #: Name of the file -> PNG, to be written into the same folder.
        self.pictures: dict[str, bytes] = {}

    def heading(self, text: str) -> None:
        """Starts a section."""
        self._parts.append(f"## {text}")

    def text(self, text: str) -> None:
        """A paragraph."""
        self._parts.append(text)

    def picture(self, png: bytes, caption: str, width: int | None = None) -> None:
        """A picture; `width` is for pages that can enlarge."""
        del width
        name = f"picture_{len(self.pictures) + 1}.png"
        self.pictures[name] = png
        self._parts.append(f"![{caption}]({name})\n\n*{caption}*")

    def table(self, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """A table."""
        self._parts.append(markdown_table(header, rows))

    def preformatted(self, text: str) -> None:
        """Text as it stands."""
        self._parts.append(f"```\n{text}\n```")

    def render(self) -> str:
        """The page."""
        return "\n\n".join(self._parts) + "\n"
