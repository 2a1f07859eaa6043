"""VARiant: fine levels through some of the blocks (arXiv 2511.16546).

The paper trains a supernet of all depths, which is not built here: a run of this config is one of
its base, sampled with less work at the fine levels, and loses more for it. A checkpoint of any
config is sampled so by launch.sample and launch.evaluate with

    --sampling '{"decoder": {"kind": "elastic_depth", "num_blocks": 16, "num_whole": 7}}'

Published for the supernet of 30 blocks at 256 px: FID 1.95 whole, 2.05 with 16, 2.12 with 8, 2.97
with 2. What it costs without such training has not been measured; benchmarks.compare_decoding does
so for a small model.
"""

import pathlib
import runpy

from ml_collections import ConfigDict

# Variant -> config and variant that it is made of, blocks of the fine levels, and whole levels.
VARIANTS = {
    "": ("mnist5k", "", 3, 2),
    "smallest": ("mnist5k", "smallest", 1, 1),
    "d30": ("var_imagenet256", "d30", 16, 7),
}


def get_config(variant: str = "") -> ConfigDict:
    """Variants: '', 'smallest' and 'd30'."""
    if variant not in VARIANTS:
        raise ValueError(f"Unknown variant {variant!r}; choose one of {', '.join(VARIANTS)}.")
    name, base, num_blocks, num_whole = VARIANTS[variant]
    path = pathlib.Path(__file__).parents[1] / f"{name}.py"
    config = runpy.run_path(str(path))["get_config"](base)
    with config.unlocked():
        config.sampling.decoder = dict(
            kind="elastic_depth", num_blocks=num_blocks, num_whole=num_whole
        )
    return config
