"""DDO (arXiv 2503.01103): a transformer is fine-tuned against its own samples, in rounds.

A round draws samples of the model that it starts from, and trains on data and samples:

    python -m launch.cache_samples --checkpoint runs/mnist/transformer \
        --output runs/ddo/samples_1 --samples_per_class 500
    python -m launch.train --config configs/family/ddo.py --workdir runs/ddo/round_1 \
        --config.train.initial_checkpoint=runs/mnist/transformer \
        --config.sample_cache=runs/ddo/samples_1 --config.token_cache=runs/mnist/tokens \
        --config.tokenizer_checkpoint=runs/mnist/tokenizer

The next one starts from the result: --checkpoint and initial_checkpoint are runs/ddo/round_1, or
its checkpoints/STEP where an earlier step was better. Within a round quality is best after a few
steps and gets worse then; the likelihood of held-out data is no measure of it. A step costs 8/3 of
a plain one.

'' and 'smallest' are the digits; d16 to d30 are VAR's at 256 px, two rounds of 96 steps. Published
FID without guidance: 3.12 for d16 and 1.79 for d30 (from 11.33 and 4.74; how its sampling code
understands 'without' is in doubt). alpha, beta and the rate of VAR were not published; those here
lie in the ranges that were, and want a sweep. Not trained here on ImageNet.
"""

import pathlib
import runpy

from ml_collections import ConfigDict

# Variant -> config and variant that it is made of.
VARIANTS = {
    "": ("mnist5k", ""),
    "smallest": ("mnist5k", "smallest"),
    **{size: ("var_imagenet256", size) for size in ("d16", "d20", "d24", "d30")},
}


def get_config(variant: str = "") -> ConfigDict:
    """Variants: '', 'smallest', 'd16', 'd20', 'd24' and 'd30'."""
    if variant not in VARIANTS:
        raise ValueError(f"Unknown variant {variant!r}; choose one of {', '.join(VARIANTS)}.")
    name, base = VARIANTS[variant]
    path = pathlib.Path(__file__).parents[1] / f"{name}.py"
    config = runpy.run_path(str(path))["get_config"](base)
    with config.unlocked():
        config.sample_cache = ""
        config.train.objective = dict(kind="ddo", alpha=10.0, beta=0.02, null_rate=0.1)
    config.model.drop_path_rate = 0.0
    config.sampling.cfg = 0.0
    if name == "mnist5k":
        config.train.optimizer.learning_rate = 1e-3
        config.train.num_steps = min(config.train.num_steps, 100)
        config.train.optimizer.warmup_steps = min(config.train.optimizer.warmup_steps, 10)
    else:
        config.train.update(batch_size=1024, num_steps=96)
        config.train.optimizer.update(learning_rate=2e-5, warmup_steps=8, schedule="constant")
    return config
