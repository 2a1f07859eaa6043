"""Trains a small classifier of a data set's images, a reward for `--sampling` to search by.

python -m launch.train_classifier --checkpoint runs/quickstart/transformer \
    --output runs/quickstart/classifier.npz

Half a minute on a CPU. The images are those of the run's training split. It is seeded otherwise
than the classifier of launch.score_small_set, which would else score its own taste. One host.
"""

from __future__ import annotations

from absl import flags

from launch import cli

_CHECKPOINT = cli.define_path("checkpoint", None, "Workdir of a transformer.")
_TOKENIZER = cli.define_path("tokenizer", None, "Its tokenizer; beside it by default.")
_OUTPUT = cli.define_path("output", None, "npz file to write; local or gs://.")
_STEPS = flags.DEFINE_integer("steps", 800, "Updates.", 1)
_SEED = flags.DEFINE_integer("seed", 1, "Of parameters, order and shifts.", 0)
flags.mark_flags_as_required(["checkpoint", "output"])


def main() -> None:
    from var_jax import build, paths
    from var_jax.evaluation.small_sets.rewards import write_classifier
    from var_jax.studies.small_set_run import classifier_of, real_images

    cli.on_one_host()
    paths.check_writable(_OUTPUT.value)
    loaded = build.load_transformer(_CHECKPOINT.value, _TOKENIZER.value)
    config, num_classes = loaded.config, loaded.network.transformer.num_classes
    train, held_out = (real_images(config, split) for split in ("train", "val"))
    classifier = classifier_of(config, train, num_classes, _STEPS.value, _SEED.value)
    write_classifier(_OUTPUT.value, classifier, train.images, train.labels)
    accuracy = classifier.accuracy(held_out.images, held_out.labels)
    print(f"{_OUTPUT.value}: {100 * accuracy:.1f}% of {len(held_out.images)} held-out images.")


if __name__ == "__main__":
    cli.run(main)
