"""Classifies the images of a split by their likelihood under each label (A-VARC).

python -m launch.classify --checkpoint runs/quickstart/transformer --num_examples 300 \
    --levels 2,4 --kept 3,1 --copies 1,4

The first stage scores all labels by the first 2 levels, the second the best 3 by all 4, on the
image and 3 noisy copies. Prints the share of images whose own label comes first, which --output
writes. By default one stage judges all labels by all levels. It needs no training, and no guidance.
"""

from __future__ import annotations

from typing import Any

from absl import flags, logging

from launch import cli

_CHECKPOINT = cli.define_path("checkpoint", None, "Workdir of a transformer.")
_TOKENIZER = cli.define_path("tokenizer", None, "Its tokenizer; beside it by default.")
_SPLIT = flags.DEFINE_string("split", "val", "Split of the data source: train or val.")
_OUTPUT = cli.define_path("output", None, "JSON file to write; local or gs://.")
_NUM = flags.DEFINE_integer("num_examples", None, "The first ones; all by default.", 1)
_LEVELS = flags.DEFINE_list("levels", None, "Levels that each stage scores; all by default.")
_KEPT = flags.DEFINE_list("kept", ["1"], "Labels that each stage keeps.")
_COPIES = flags.DEFINE_list("copies", None, "The image and noisy copies, at each stage; else 1.")
_NOISE = flags.DEFINE_float("noise", 0.1, "Deviation of the copies' noise on features.", 0.0)
_BATCH = flags.DEFINE_integer("batch_size", 64, "Images at once, over all devices.", 1)
_SEED = flags.DEFINE_integer("seed", 0, "Of the noise.", 0)
flags.mark_flags_as_required(["checkpoint"])


def main() -> None:
    values = cli.scored(_OUTPUT.value, score)
    if values is None:
        return
    print(f"{100 * values['accuracy']:.2f}% of {values['num_examples']} images.")


def score() -> dict[str, Any]:
    """What the flags ask for; JSON."""
    from var_jax import build
    from var_jax.evaluation import likelihood_classifier as classifier
    from var_jax.parallel import sharding

    mesh = sharding.make_mesh()
    loaded = build.load_transformer(_CHECKPOINT.value, _TOKENIZER.value, mesh=mesh)
    tokenizer = loaded.tokenizer.on(mesh)
    levels = (build.pyramid(loaded.config).num_levels,)
    if _LEVELS.value:
        levels = cli.numbers("levels", _LEVELS.value, int)
    copies = cli.numbers("copies", _COPIES.value, int) if _COPIES.value else None
    kept = cli.numbers("kept", _KEPT.value, int)
    cascade = classifier.Cascade(levels, kept, copies, _NOISE.value)
    transformer = loaded.network.transformer
    cascade.stages(transformer.pyramid.num_levels, transformer.num_classes)
    source = build.source(loaded.config, _SPLIT.value)
    build.check_same_classes(loaded.metadata, source, f"The transformer in {_CHECKPOINT.value}")
    batch_size = sharding.padded_batch(_BATCH.value, mesh)
    pipeline = build.pipeline(loaded.config, source, batch_size, train=False, mesh=mesh)
    logging.info("Classifying images of %s.", _SPLIT.value)
    run = classifier.jit_classification(loaded.network, tokenizer.module, cascade, mesh)
    share, count = classifier.accuracy(
        run, loaded.params, tokenizer.params, pipeline, mesh, _NUM.value, _SEED.value
    )
    return {
        "checkpoint": str(_CHECKPOINT.value),
        "step": loaded.step,
        "split": _SPLIT.value,
        "levels": list(cascade.levels),
        "kept": list(cascade.kept),
        "copies": list(copies or ()),
        "noise": cascade.noise,
        "num_examples": count,
        "accuracy": share,
    }


if __name__ == "__main__":
    cli.run(main)
