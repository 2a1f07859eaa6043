"""EAR (arXiv 2506.20151): a model forgets classes.

    python -m launch.train --config configs/family/erasure.py --workdir runs/erasure \
        --config.train.initial_checkpoint=runs/mnist/transformer \
        --config.tokenizer_checkpoint=runs/mnist/tokenizer --config.token_cache=runs/mnist/tokens

Asked for an erased class it draws something of no class, or of the one that the anchor names. Only
the attention trains. Several classes at once, and an anchor:

    --config.train.objective.erased='(3, 8)' --config.train.objective.anchor=5

'' and 'smallest' are the digits, of which 3 is erased; d16 to d30 are VAR's at 256 px, which forget
class 0 in a hundredth of an epoch. EAR itself erased prompts from Janus-Pro, where the attention of
the first five layers trained at a rate of 1e-5; nothing is published of VAR, and nothing was
trained here on ImageNet.
"""

import pathlib
import runpy

from ml_collections import ConfigDict

SIZES = ("d16", "d20", "d24", "d30")
IMAGES = 1281167


def get_config(variant: str = "") -> ConfigDict:
    """Variants: '', 'smallest', 'd16', 'd20', 'd24' and 'd30'."""
    if variant not in ("", "smallest", *SIZES):
        known = ", ".join(["''", "smallest", *SIZES])
        raise ValueError(f"Unknown variant {variant!r} of erasure; choose one of {known}.")
    name = "var_imagenet256" if variant in SIZES else "mnist5k"
    path = pathlib.Path(__file__).parents[1] / f"{name}.py"
    config = runpy.run_path(str(path))["get_config"](variant)
    with config.unlocked():
        config.train.objective = dict(
            kind="erasure", erased=(0 if variant in SIZES else 3,), strength=1.0
        )
        config.train.trained = ("*/attention/*",)
        config.train.optimizer.update(weight_decay=0.0, weight_decay_end=None)
    config.model.drop_path_rate = 0.0
    if variant in SIZES:
        config.train.update(batch_size=64, num_steps=IMAGES // 100 // 64)
        # The rate is that of a batch of 256.
        config.train.optimizer.update(learning_rate=4e-5, warmup_steps=0, schedule="constant")
    elif not variant:
        config.train.num_steps = 300
        config.train.optimizer.update(learning_rate=8e-3, warmup_steps=20)
    return config
