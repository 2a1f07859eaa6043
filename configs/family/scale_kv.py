"""ScaleKV: sampling with a cache that forgets (arXiv 2505.19602).

Nothing is trained for it: a run of this config is one of its base, sampled with less memory. A
checkpoint of any config is sampled so by launch.sample and launch.evaluate with --sampling, such as

    --sampling '{"cache_policy": {"kind": "scale_kv", "drafters": [0, 1, 2], "large": 256,
        "small": 64, "base_capacity": 155}}'

The paper finds drafters and budgets of a text-to-image model at 1024 px. Those here for class
conditional models are guesses: the first blocks are drafters, and from 155 keys on (7 of 10 levels)
the others keep about a tenth of all. Their cost in quality has not been measured.
"""

import pathlib
import runpy

from ml_collections import ConfigDict

# Variant -> config and variant that it is made of, and its policy.
VARIANTS = {
    "": ("mnist5k", "", dict(drafters=(0,), large=18, small=8, base_capacity=5, window=4)),
    "smallest": (
        "mnist5k",
        "smallest",
        dict(large=8, small=8, base_capacity=5, window=4, drafters=()),
    ),
    "d30": (
        "var_imagenet256",
        "d30",
        dict(drafters=(0, 1, 2), large=256, small=64, base_capacity=155, window=16),
    ),
}


def get_config(variant: str = "") -> ConfigDict:
    """Variants: '', 'smallest' and 'd30'."""
    if variant not in VARIANTS:
        raise ValueError(f"Unknown variant {variant!r}; choose one of {', '.join(VARIANTS)}.")
    name, base, policy = VARIANTS[variant]
    path = pathlib.Path(__file__).parents[1] / f"{name}.py"
    config = runpy.run_path(str(path))["get_config"](base)
    with config.unlocked():
        config.sampling.cache_policy = dict(kind="scale_kv", **policy)
    return config
