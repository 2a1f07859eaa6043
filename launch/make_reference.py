"""Makes a reference for scores from a data source, with the crop of evaluation.

python -m launch.make_reference --config configs/var_imagenet256.py --split val \
    --inception pt_inception-2015-12-05-6726825d.pth --output val256.npz

OUTPUT holds images, the statistics of all of them, and what it was made of. Runs on one host.
"""

from __future__ import annotations

import json

from absl import flags, logging
from ml_collections import config_flags

from launch import cli

_CONFIG = config_flags.DEFINE_config_file("config", help_string="Whose data is used.")
_SPLIT = flags.DEFINE_string("split", "val", "Split of the data.")
_OUTPUT = cli.define_path("output", None, "npz to make.")
_INCEPTION, _INCEPTION_SHA256 = cli.define_inception_flags()
_KEPT = flags.DEFINE_integer("images", 10_000, "Images that are kept beside the statistics.", 2)
_BATCH = flags.DEFINE_integer("batch_size", 100, "Images read at once.", 1)
flags.mark_flags_as_required(["config", "output"])


def main() -> None:
    from var_jax import build
    from var_jax.evaluation.generated import references
    from var_jax.evaluation.inception.extractor import FeatureExtractor
    from var_jax.evaluation.inception.weights import load_inception
    from var_jax.evaluation.progress import ScoringProgress

    cli.on_one_host()
    config, extractor = _CONFIG.value, None
    if _INCEPTION.value:
        weights = load_inception(_INCEPTION.value, sha256=_INCEPTION_SHA256.value)
        extractor = FeatureExtractor(weights)
    else:
        logging.info("Without --inception: the images alone, no statistics.")
    images = build.pipeline(
        config, build.source(config, _SPLIT.value), _BATCH.value, train=False, caption="none"
    )
    note = references.make_reference(
        _OUTPUT.value,
        (batch["image"][batch["mask"]] for batch in images.batches()),
        images.num_samples,
        references.origin(config.data.source, _SPLIT.value, images.transform)
        | {"options": config.data.options.to_dict(), "unreadable_images": "left out"},
        extractor,
        max_images=_KEPT.value,
        progress=ScoringProgress(),
    )
    print(json.dumps(note, indent=2))


if __name__ == "__main__":
    cli.run(main)
