"""Draws samples of a transformer and keeps their tokens, for objectives that learn from them (DDO).

python -m launch.cache_samples --checkpoint runs/mnist/transformer --output runs/ddo/samples \
    --samples_per_class 500

As many of each class, without guidance and filters unless flags say otherwise; each is decoded, and
its picture encoded. An interrupted run goes on where it was. configs/family/ddo.py trains with it.
"""

from __future__ import annotations

from absl import flags

from launch import cli

_CHECKPOINT = cli.define_path("checkpoint", None, "Workdir of a transformer.")
_TOKENIZER = cli.define_path("tokenizer", None, "Its tokenizer; beside it by default.")
_OUTPUT = cli.define_path("output", None, "Local or gs:// directory of the cache.")
_PER_CLASS = flags.DEFINE_integer("samples_per_class", None, "Samples of each class.", 1)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the samples.", 0)
_BATCH = flags.DEFINE_integer("batch_size", 256, "Samples at once, over all devices.", 1)
cli.define_sampling_flags()
flags.mark_flags_as_required(["checkpoint", "output", "samples_per_class"])


def main() -> None:
    from var_jax import build

    with cli.session(_OUTPUT.value):
        build.cache_samples(
            _CHECKPOINT.value,
            _OUTPUT.value,
            _TOKENIZER.value,
            samples_per_class=_PER_CLASS.value,
            seed=_SEED.value,
            batch_size=_BATCH.value,
            settings=cli.sampling_settings(),
        )


if __name__ == "__main__":
    cli.run(main)
