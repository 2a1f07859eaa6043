"""What a run on a small data set came to, as one page."""

from __future__ import annotations

import json
import pathlib

import numpy as np

from var_jax import paths
from var_jax.evaluation.pictures import make_grid
from var_jax.evaluation.report import Report, curves
from var_jax.pixels import encode_png
from var_jax.train.metrics import read_metrics

_EXPLAINED = {
    "label_accuracy": "generated images that the classifier takes for their label",
    "classifier_accuracy_real": "real held-out images that the classifier gets right",
    "frechet_distance": "generated against real held-out images, classifier features",
    "frechet_distance_untrained": "the same before training",
    "frechet_distance_reconstructed": "reconstructed training images: the tokenizer's share",
    "frechet_distance_real": "real training images: the floor",
    "diversity": "pixel deviation within a class, generated over real",
    "reconstruction_psnr": "held-out images, dB",
    "reconstruction_ssim": "held-out images",
}


def write_report(workdir: pathlib.Path) -> None:
    """Writes report.html and metrics.json of a folder with tokenizer/, transformer/, scores/."""
    scores = json.loads((workdir / "scores" / "scores.json").read_text())
    config = json.loads((workdir / "transformer" / "config.json").read_text())
    seconds_file = workdir / "seconds.json"
    seconds = json.loads(seconds_file.read_text()) if seconds_file.exists() else {}
    pictures = np.load(workdir / "scores" / "images.npz")
    generated, labels = pictures["generated"], pictures["generated_labels"]
    classes = np.unique(labels)

    report = Report(
        "var_jax quickstart",
        "A multi-scale tokenizer and a scale-wise transformer, trained from nothing on "
        f"{config['data']['source']}. Every picture and number below comes from this run.",
    )
    by_class = np.concatenate([generated[labels == c][:10] for c in classes])
    samples = encode_png(make_grid(by_class, columns=10))
    paths.write_bytes(workdir / "samples.png", samples)
    report.heading("Samples, one row per class")
    report.picture(samples, "Drawn at random, not selected.", width=700)

    levels = pictures["levels"]
    shown = levels[:, : len(classes)].swapaxes(0, 1).reshape(-1, *levels.shape[2:])
    growing = encode_png(make_grid(shown, columns=len(levels)))
    paths.write_bytes(workdir / "levels.png", growing)
    report.heading("One image growing level by level")
    side = ", ".join(f"{n}x{n}" for n in config["patch_nums"])
    report.picture(growing, f"Left to right: after the token maps {side}.", width=70 * len(levels))

    report.heading("Reconstructions of held-out images")
    pairs = np.concatenate([pictures["held_out"], pictures["reconstructed"]])
    report.picture(
        encode_png(make_grid(pairs, columns=len(pictures["held_out"]))),
        "Originals above, reconstructions below.",
        width=900,
    )

    report.heading("Scores")
    report.table(
        ["score", "value", "of what"],
        [(name, scores[name], text) for name, text in _EXPLAINED.items()],
    )
    report.text("Share of the codebook that each level uses, and the perplexity of its codes:")
    usage = zip(config["patch_nums"], scores["code_usage"], scores["code_perplexity"], strict=True)
    report.table(["level", "usage", "perplexity"], [(f"{n}x{n}", u, p) for n, u, p in usage])

    report.heading("Training")
    tokenizer = read_metrics(workdir / "tokenizer")
    transformer = read_metrics(workdir / "transformer")
    report.picture(
        curves({"tokenizer": tokenizer}, {"psnr": "PSNR of training batches"}, "dB"),
        "Tokenizer.",
    )
    report.picture(
        curves(
            {"transformer": transformer},
            {"loss_mean": "all levels", "loss_last": "last level", "eval/loss_mean": "held out"},
            "nats per token",
        ),
        "Transformer: cross entropy.",
    )
    report.table(["stage", "seconds"], [(k, float(v)) for k, v in seconds.items()])
    report.heading("Config")
    report.preformatted(json.dumps(config, indent=2))

    paths.write_text(workdir / "report.html", report.render())
    paths.write_json(workdir / "metrics.json", {**scores, "seconds": seconds})
