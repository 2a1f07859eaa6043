"""CoDe: a large transformer draws the coarse levels, a small one the fine ones (arXiv 2411.17787).

Train both as usual on one tokenizer; name the small one's workdir where the large one is sampled:

    python -m launch.evaluate --checkpoint runs/d30 --output samples --sampling '{"decoder": {
        "kind": "collaborative", "refiner": "runs/d16", "num_drafted": 8}}'

or train by this config with --config.sampling.decoder.refiner=runs/d16, so that the samples drawn
along the way are drawn together too. Of 10 levels 6 to 9 are drafted in the paper: fewer are faster
(published FID 2.27, 2.11, 1.98, 1.94 at 256 px for 6, 7, 8, 9; not measured here).
"""

import pathlib
import runpy

from ml_collections import ConfigDict

# Variant -> config and variant that it is made of, drafted levels, settings of the samples.
VARIANTS = {
    "": ("mnist5k", "", 3, {}),
    "smallest": ("mnist5k", "smallest", 2, {}),
    "d30": (
        "var_imagenet256",
        "d30",
        8,
        dict(
            top_k=600,
            processors=(dict(kind="late_temperature", temperature=(1.1,) * 7 + (1.0,) * 3),),
        ),
    ),
}


def get_config(variant: str = "") -> ConfigDict:
    """Variants: '', 'smallest' and 'd30'."""
    if variant not in VARIANTS:
        raise ValueError(f"Unknown variant {variant!r}; choose one of {', '.join(VARIANTS)}.")
    name, base, num_drafted, sampling = VARIANTS[variant]
    path = pathlib.Path(__file__).parents[1] / f"{name}.py"
    config = runpy.run_path(str(path))["get_config"](base)
    with config.unlocked():
        config.sampling.update(sampling)
        config.sampling.decoder = dict(kind="collaborative", refiner="", num_drafted=num_drafted)
    return config
