"""The scores of a tokenizer as pages with pictures, Markdown and HTML alike."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from var_jax.evaluation.pictures import make_grid
from var_jax.evaluation.reconstructed.text_preservation import TextScores
from var_jax.evaluation.reconstructed.tokenizer_scores import Examples, TokenizerScores
from var_jax.evaluation.report import MarkdownReport, Report, line_plots
from var_jax.paths import write_bytes, write_json, write_text
from var_jax.pixels import encode_png

#: Below so many images a Frechet distance says more about their number than about the tokenizer.
FEW_IMAGES = 10_000
NO_OCR = (
    "No OCR package was found (pytesseract with its program, or easyocr with its models), so "
    "nothing was read back by one; letters_kept is what the nearest glyph reads at the known "
    "place of each letter."
)
NO_INCEPTION = "Without Inception weights (--inception) there is no rFID."
NO_LPIPS = "Without the weights of VGG (--lpips) there is no LPIPS."
_EXPLAINED = {
    "rfid": "Frechet distance of the reconstructions",
    "rsfid": "the same of spatial features",
    "inception_score": "of the reconstructions",
    "inception_score_original": "of the originals",
    "psnr": "dB; an exact copy counts as 100",
    "ssim": "1 is an exact copy",
    "lpips": "VGG; 0 is an exact copy",
    "edge_error": "Sobel magnitudes, relative; 0 is best",
    "high_frequency_error": "above half the Nyquist frequency, relative; 0 is best",
    "high_frequency_ratio": "energy there; below 1 is smoother than the original",
    "codebook_usage": "share of the codes that any level uses",
}


@dataclasses.dataclass(frozen=True)
class TextPart:
    """The text preservation part.

    Attributes:
      scores: one for each size.
      examples: for each size a picture and its reconstruction, uint8 [H, W, c].
      reader: name of the OCR package, or None.
    """

    scores: Sequence[TextScores]
    examples: Sequence[tuple[np.ndarray, np.ndarray]]
    reader: str | None


def remarks(scores: TokenizerScores, text: TextPart | None, manifest: dict[str, Any]) -> list[str]:
    """What the reader of the scores must be told, one sentence each."""
    found = []
    if scores.rfid is None:
        found.append(NO_INCEPTION)
    else:
        if not manifest.get("published_inception"):
            found.append(
                "The network is not the published Inception file, so rFID cannot be compared with "
                "published numbers."
            )
        if scores.num_images < FEW_IMAGES:
            found.append(
                f"rFID of {scores.num_images} images compares tokenizers on these images only; "
                "published numbers are of 50,000."
            )
    if scores.lpips is None:
        found.append(NO_LPIPS)
    if text is not None and text.reader is None:
        found.append(NO_OCR)
    return found


def write_report(
    output: epath.PathLike,
    scores: TokenizerScores,
    examples: Examples,
    text: TextPart | None,
    patch_shapes: Sequence[tuple[int, int]],
    manifest: dict[str, Any],
) -> dict[str, Any]:
    """Writes manifest.json, report.md with its pictures, report.html and, last, scores.json.

    Args:
      output: folder.
      scores: of the images.
      examples: pictures.
      text: the text preservation part, or None.
      patch_shapes: (height, width) of each level.
      manifest: every setting and hash, ready for JSON.

    Returns:
      what scores.json holds.
    """
    output = epath.Path(output)
    output.mkdir(parents=True, exist_ok=True)
    told = remarks(scores, text, manifest)
    introduction = (
        f"{scores.num_images} images of {manifest.get('source')} ({manifest.get('split')}), "
        f"{manifest.get('crop')}. Reconstructions are compared with the identically cropped "
        "originals and rounded to 8 bits first."
    )
    html = Report("Tokenizer", introduction)
    markdown = MarkdownReport("Tokenizer", introduction)
    for page in (html, markdown):
        _fill(page, scores, examples, text, patch_shapes, told)
        page.heading("Manifest")
        page.preformatted(json.dumps(manifest, indent=2))
    for name, png in markdown.pictures.items():
        write_bytes(output / name, png)
    write_text(output / "report.md", markdown.render())
    write_text(output / "report.html", html.render())
    write_json(output / "manifest.json", manifest)
    result = json.loads(json.dumps(dataclasses.asdict(scores)))
    result["text"] = [dataclasses.asdict(s) for s in text.scores] if text else None
    result["remarks"] = told
    # Last, so that its presence says that all is there.
    write_json(output / "scores.json", result)
    return result


def _fill(
    page: Report | MarkdownReport,
    scores: TokenizerScores,
    examples: Examples,
    text: TextPart | None,
    patch_shapes: Sequence[tuple[int, int]],
    told: Sequence[str],
) -> None:
    levels = [f"{h}x{w}" for h, w in patch_shapes]
    page.heading("Scores")
    rows = [(name, getattr(scores, name), what) for name, what in _EXPLAINED.items()]
    page.table(["score", "value", "of what"], [row for row in rows if row[1] is not None])
    for sentence in told:
        page.text(sentence)
    if scores.perturbed is not None:
        page.heading("Perturbed codes")
        page.text(f"pFID {scores.perturbed.pfid:.3f}, the mean of the Frechet distances below.")
        pairs = zip(scores.perturbed.strengths, scores.perturbed.distances, strict=True)
        page.table(
            ["share of tokens", "nearest codes", "distance"], [(*pair, d) for pair, d in pairs]
        )
    page.heading("Reconstructions")
    pair = np.concatenate([examples.originals, examples.reconstructions])
    width = min(900, 80 * len(examples.originals))
    page.picture(
        encode_png(make_grid(pair, columns=len(examples.originals))),
        "Originals above, reconstructions below.",
        width=width,
    )
    page.heading("Level by level")
    page.text(
        f"PSNR with the first 1 to {len(levels)} levels ({scores.num_level_images} images), and "
        "how each level uses the codebook."
    )
    page.table(
        ["level", "PSNR up to it", "codes used", "perplexity"],
        list(
            zip(
                levels,
                scores.psnr_by_levels,
                scores.code_usage,
                scores.code_perplexity,
                strict=True,
            )
        ),
    )
    if importlib.util.find_spec("matplotlib") is not None:
        points = list(enumerate(scores.psnr_by_levels, 1))
        page.picture(line_plots({"PSNR (dB)": {"": points}}, "levels used"), "PSNR over levels.")
    shown = examples.levels[:, :4].swapaxes(0, 1)
    growing = np.concatenate([shown, examples.originals[:4, None]], 1)
    page.picture(
        encode_png(make_grid(growing.reshape(-1, *growing.shape[2:]), columns=growing.shape[1])),
        f"Left to right: after {', '.join(levels)}; the original.",
        width=min(900, 80 * growing.shape[1]),
    )
    if text is None:
        return
    page.heading("Text")
    if not text.scores:
        page.text("The images are too small for a line of three letters.")
        return
    if text.reader:
        page.text(f"Read back with {text.reader}.")
    shown_fields = [
        f.name
        for f in dataclasses.fields(TextScores)
        if getattr(text.scores[0], f.name) is not None
    ]
    page.table(shown_fields, [[getattr(s, name) for name in shown_fields] for s in text.scores])
    above, below = (np.stack([e[i] for e in text.examples]) for i in (0, 1))
    page.picture(
        encode_png(make_grid(np.concatenate([above, below]), columns=len(above))),
        "Text above, its reconstruction below; smallest letters first.",
        width=min(900, 160 * len(above)),
    )
