"""LoRA (arXiv 2106.09685): a model is fine-tuned through thin matrices beside its weights.

    python -m launch.train --config configs/family/lora.py --workdir runs/lora \
        --config.train.initial_checkpoint=runs/mnist/transformer \
        --config.tokenizer_checkpoint=runs/mnist/tokenizer --config.token_cache=runs/mnist/tokens

The checkpoints hold the matrices alone; the model that they change is in the workdir once
(`reference`), and the checkpoints name it by its fingerprint. launch.sample and all others take the
workdir as they take any; launch.merge_adapter makes a model of it that stands alone. The rates are
about ten times those of full fine-tuning; no other has been tried. Any objective can be trained so:

    --config.train.objective.kind=cca

'' and 'smallest' are the digits; d16 to d30 are VAR's sizes at 256 px: one epoch on ImageNet, of
which nothing is published; put your own data there. None has been trained here to its end.
"""

import pathlib
import runpy

from ml_collections import ConfigDict

# Variant -> config and variant that it is made of, rank.
VARIANTS = {
    "": ("mnist5k", "", 8),
    "smallest": ("mnist5k", "smallest", 2),
    "d16": ("var_imagenet256", "d16", 16),
    "d20": ("var_imagenet256", "d20", 16),
    "d24": ("var_imagenet256", "d24", 16),
    "d30": ("var_imagenet256", "d30", 16),
}
IMAGES = 1281167


def get_config(variant: str = "") -> ConfigDict:
    """Variants: '', 'smallest', 'd16', 'd20', 'd24' and 'd30'."""
    if variant not in VARIANTS:
        raise ValueError(f"Unknown variant {variant!r}; choose one of {', '.join(VARIANTS)}.")
    name, base, rank = VARIANTS[variant]
    path = pathlib.Path(__file__).parents[1] / f"{name}.py"
    config = runpy.run_path(str(path))["get_config"](base)
    with config.unlocked():
        config.train.adapter = dict(kind="lora", rank=rank, alpha=2.0 * rank)
        config.train.optimizer.update(weight_decay=0.0, weight_decay_end=None)
    config.model.drop_path_rate = 0.0
    if name == "mnist5k":
        config.train.optimizer.learning_rate = 1e-2
        config.train.num_steps = min(config.train.num_steps, 600)
    else:
        config.train.update(batch_size=256, num_steps=IMAGES // 256)
        config.train.optimizer.update(learning_rate=2e-4, warmup_steps=IMAGES // 256 // 50)
    return config
