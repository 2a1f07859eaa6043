"""Compares the rules of editing on held-out images of a small data set, by its classifier.

    python -m benchmarks.compare_edits --checkpoint runs/quickstart/transformer \
        --json docs/editing.json --picture docs/editing.png

In-painting with the true label: what a mask marks is erased before anything is encoded, so no
rule sees it. For each mask and rule: PSNR of the kept pixels against the tokenizer's
reconstruction of what was left; the classifier's accuracy on the results; their Frechet distance
from the held-out images; and the seam, the mean step between neighbouring pixels across the mask's
border over that of the reconstructed whole images: 1 is as smooth as those, more is a visible edge.
Then edits without a mask: variations by the number of levels that stay, and other labels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from absl import flags, logging
from jaxtyping import Bool, UInt8
from PIL import Image, ImageDraw

from launch import cli
from var_jax.evaluation.report import markdown_table

_CHECKPOINT = cli.define_path("checkpoint", None, "Workdir of a transformer.")
_TOKENIZER = cli.define_path("tokenizer", None, "Its tokenizer; beside it by default.")
_NUM = flags.DEFINE_integer("num_images", 500, "Held-out images.", 2)
_STEPS = flags.DEFINE_integer("classifier_steps", 800, "Updates of the classifier.", 1)
_CANDIDATES = flags.DEFINE_integer("candidates", 8, "Draws where several are compared.", 2)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of masks and results.", 0)
_JSON = cli.define_path("json", None, "File for the numbers.")
_PICTURE = cli.define_path("picture", None, "PNG of some results.")

#: Rows of the picture for each mask.
_SHOWN = 4
#: Edits that ask for the next label: those that keep levels, and the rule that needs no mask.
OTHER_LABELS: dict[str, dict[str, Any]] = {
    **{f"{level} levels stay": {"level": level} for level in (0, 1, 2)},
    "relabel, margin 0.2, 2 copied": {"rule": {"kind": "relabel", "margin": 0.2, "copied": 2}},
    "relabel, margin 0.02, 1 copied": {"rule": {"kind": "relabel", "margin": 0.02, "copied": 1}},
}


def settings() -> dict[str, dict[str, Any]]:
    """What is compared: arguments of `Model.edit` by name."""
    several = {"candidates": _CANDIDATES.value}
    return {
        "forced": {"rule": "forced", "kept": "decoded"},
        "refit, decoded": {"rule": "refit", "kept": "decoded"},
        "refit": {"rule": "refit"},
        f"refit, best of {_CANDIDATES.value}": {"rule": "refit", **several},
    }


def masks(count: int, size: int, seed: int) -> dict[str, Bool[np.ndarray, "n H W"]]:
    """Masks by name, true where images are drawn anew."""
    box, half = np.zeros((2, size, size), bool)
    box[size // 4 : -(size // 4), size // 4 : -(size // 4)] = True
    half[:, size // 2 :] = True
    rng = np.random.default_rng(seed)

    def strokes() -> np.ndarray:
        canvas = Image.new("1", (size, size))
        for _ in range(2):
            ends = rng.uniform(0, size, (2, 2))
            ImageDraw.Draw(canvas).line([tuple(p) for p in ends], fill=1, width=size // 6)
        return np.asarray(canvas)

    drawn = np.stack([strokes() for _ in range(count)])
    return {
        "centre box": np.broadcast_to(box, drawn.shape),
        "right half": np.broadcast_to(half, drawn.shape),
        "strokes": drawn,
    }


def step_across(images: UInt8[np.ndarray, "n H W c"], mask: Bool[np.ndarray, "n H W"]) -> float:
    """Mean difference, in grey levels, of neighbouring pixels of which one is in the mask."""
    x, steps = images.astype(np.float32).mean(-1), []
    for axis in (1, 2):
        across = np.diff(mask.astype(np.int8), axis=axis) != 0
        steps.append(np.abs(np.diff(x, axis=axis))[across])
    return float(np.concatenate(steps).mean())


def kept_psnr(
    made: UInt8[np.ndarray, "n H W c"],
    wanted: UInt8[np.ndarray, "n H W c"],
    mask: Bool[np.ndarray, "n H W"],
) -> float:
    """PSNR in dB of all pixels outside the mask together."""
    error = np.square((made.astype(np.float32) - wanted) / 255)[~mask].mean(dtype=np.float64)
    return float(-10 * np.log10(max(error, 1e-10)))


def main() -> None:
    import var_jax
    from var_jax.evaluation.distances.frechet import frechet_distance
    from var_jax.evaluation.pictures import make_grid
    from var_jax.paths import write_bytes, write_json
    from var_jax.pixels import encode_png
    from var_jax.studies import small_set_run

    cli.on_one_host()
    model = var_jax.load(_CHECKPOINT.value, _TOKENIZER.value)
    config = model.transformer.config
    train, held_out = (small_set_run.real_images(config, split) for split in ("train", "val"))
    order = np.random.default_rng(_SEED.value).permutation(len(held_out.images))[: _NUM.value]
    images, labels = held_out.images[order], held_out.labels[order]
    classifier = small_set_run.classifier_of(config, train, model.num_classes, _STEPS.value)
    real = classifier.statistics(held_out.images)

    def scores(made: np.ndarray, wanted: np.ndarray) -> dict[str, float]:
        distance = frechet_distance(classifier.statistics(made), real)
        return {"accuracy": classifier.accuracy(made, wanted), "frechet": float(distance)}

    whole = model.decode(model.encode(images))
    found: dict[str, Any] = {"reconstructed": scores(whole, labels)}
    shown = []
    for name, mask in masks(len(images), images.shape[1], _SEED.value).items():
        left = np.where(mask[..., None], config.data.transform.get("background", 0), images)
        left = left.astype(np.uint8)
        rebuilt = model.decode(model.encode(left))
        smooth = step_across(whole, mask)
        found[name] = {"erased": scores(rebuilt, labels)}
        grey = np.where(mask[..., None], 96, left).astype(np.uint8)
        columns = [images, grey]
        for rule, arguments in settings().items():
            made = model.edit(left, labels, mask, seed=_SEED.value, **arguments)
            found[name][rule] = {
                "kept_psnr": kept_psnr(made, rebuilt, mask),
                **scores(made, labels),
                "seam": step_across(made, mask) / smooth,
            }
            logging.info("%s, %s: %s", name, rule, found[name][rule])
            columns.append(made)
        shown += [column[i] for i in range(_SHOWN) for column in columns]
    nothing = np.zeros(images.shape[:3], bool)
    for name, wanted, rows in (
        ("variations", labels, variations(model.tokenizer.module.codec.pyramid.num_levels)),
        ("other labels", (labels + 1) % model.num_classes, OTHER_LABELS),
    ):
        found[name] = {}
        for row, arguments in rows.items():
            made = model.edit(images, wanted, shown=labels, seed=_SEED.value, **arguments)
            found[name][row] = {
                "psnr": kept_psnr(made, whole, nothing),
                **scores(made, wanted),
            }
            logging.info("%s: %s", row, found[name][row])
    print_tables(found)
    if _JSON.value:
        write_json(_JSON.value, found)
    if _PICTURE.value:
        write_bytes(_PICTURE.value, encode_png(make_grid(np.stack(shown), 2 + len(settings()))))


def variations(num_levels: int) -> dict[str, dict[str, Any]]:
    """Edits that keep the first levels, by how many."""
    return {f"{level} levels stay": {"level": level} for level in range(num_levels)}


def print_tables(found: dict[str, Any]) -> None:
    """The numbers as Markdown."""
    for name, rows in found.items():
        rows = {name: rows} if name == "reconstructed" else rows
        keys = list(dict.fromkeys(key for row in rows.values() for key in row))
        cells = [[row, *(values.get(key, "") for key in keys)] for row, values in rows.items()]
        print(f"\n{markdown_table([name, *keys], cells)}")


if __name__ == "__main__":
    flags.mark_flags_as_required(["checkpoint"])
    cli.run(main)
