"""SSG, scaled spatial guidance: away from what the coarser level expects (arXiv 2602.05534).

Nothing is trained for it: a run of this config is one of its base, drawn otherwise. A checkpoint of
any config is drawn so by launch.sample and launch.evaluate with

    --sampling '{"guidance": {"kind": "ssg", "beta": 0.3}}'

cfg and its schedule stay what they are. beta may be one number for each level. The paper lets it
fall from level to level and does not say its values, so those here are guesses, and what they do to
scores has not been measured; benchmarks.compare_decoding does so for a small model. Published for
256 px: FID 3.42 to 3.27 with d16, 2.02 to 1.68 with d30.
"""

import pathlib
import runpy

from ml_collections import ConfigDict

# Variant -> config and variant that it is made of, and beta.
VARIANTS = {
    "": ("mnist5k", "", 0.3),
    "smallest": ("mnist5k", "smallest", 0.3),
    "d16": ("var_imagenet256", "d16", (0.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)),
}


def get_config(variant: str = "") -> ConfigDict:
    """Variants: '', 'smallest' and 'd16'."""
    if variant not in VARIANTS:
        raise ValueError(f"Unknown variant {variant!r}; choose one of {', '.join(VARIANTS)}.")
    name, base, beta = VARIANTS[variant]
    path = pathlib.Path(__file__).parents[1] / f"{name}.py"
    config = runpy.run_path(str(path))["get_config"](base)
    config.sampling.guidance = dict(kind="ssg", beta=beta)
    return config
