"""Encodes a data set once, so that training reads tokens and the step holds no tokenizer.

python -m launch.cache_tokens --tokenizer runs/mnist/tokenizer --output runs/mnist/tokens \
    --crops 4

Writes OUTPUT/train (`crops` random crops an image) and OUTPUT/val (the central crop). An
interrupted run goes on where it was. A tokenizer with dtype 'float32' encodes in float32 on every
backend, at six passes of a TPU's matrix unit, unless its config sets encoder_precision.
"""

from __future__ import annotations

from absl import flags

from launch import cli

_TOKENIZER = cli.define_path("tokenizer", None, "Workdir of the tokenizer.")
_OUTPUT = cli.define_path("output", None, "Local or gs:// directory of the cache.")
_CROPS = flags.DEFINE_integer("crops", 1, "Random crops (and augmentations) an image.", 1)
_BATCH = flags.DEFINE_integer("batch_size", 256, "Images encoded at once, over all devices.", 1)
_SPLITS = flags.DEFINE_list("splits", ["train", "val"], "Splits to encode.")
flags.mark_flags_as_required(["tokenizer", "output"])


def main() -> None:
    from var_jax import build

    with cli.session(_OUTPUT.value):
        build.cache_tokens(
            _TOKENIZER.value,
            _OUTPUT.value,
            crops=_CROPS.value,
            batch_size=_BATCH.value,
            splits=_SPLITS.value,
        )


if __name__ == "__main__":
    cli.run(main)
