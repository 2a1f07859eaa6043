"""Scores a run on a small data set by a classifier trained on its real images.

python -m launch.score_small_set --checkpoint runs/quickstart/transformer \
    --output runs/quickstart/scores

A minute on a CPU. OUTPUT gets scores.json (label accuracy, Frechet distance in the classifier's
features, diversity, PSNR and SSIM of reconstructions, code usage) and images.npz. Runs on one host.
"""

from __future__ import annotations

import json

from absl import flags

from launch import cli

_CHECKPOINT = cli.define_path("checkpoint", None, "Workdir of a transformer.")
_TOKENIZER = cli.define_path("tokenizer", None, "Its tokenizer; beside it by default.")
_OUTPUT = cli.define_path("output", None, "Folder for scores.json and images.npz.")
_NUM_SAMPLES = flags.DEFINE_integer("num_samples", 1000, "Generated images.", 1)
_CLASSIFIER_STEPS = flags.DEFINE_integer("classifier_steps", 800, "Updates of the classifier.", 1)
_BATCH = flags.DEFINE_integer("batch_size", 100, "Images at once.", 1)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the samples.", 0)
flags.mark_flags_as_required(["checkpoint", "output"])
cli.define_sampling_flags()


def main() -> None:
    from var_jax.studies.small_set_run import score_small_set

    cli.on_one_host()
    scores = score_small_set(
        _CHECKPOINT.value,
        _TOKENIZER.value,
        _OUTPUT.value,
        num_samples=_NUM_SAMPLES.value,
        classifier_steps=_CLASSIFIER_STEPS.value,
        batch_size=_BATCH.value,
        seed=_SEED.value,
        decoder_of=cli.decoder,
    )
    print(json.dumps(scores, indent=2))


if __name__ == "__main__":
    cli.run(main)
