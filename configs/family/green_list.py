"""Images with a watermark: half of the codes of each level are drawn more often (LBW).

Any categorical transformer carries it, and nothing is trained for it: a run of this config is one
of its base, whose samples are marked. `var_jax.heads.watermark.detection_score` finds the mark in
the tokens of an image, for whoever has the key; choose one of your own.

    python -m launch.train --config configs/family/green_list.py --workdir runs/marked \
        --config.tokenizer_checkpoint=runs/mnist/tokenizer --config.token_cache=runs/mnist/tokens

delta trades quality for a mark that is found in fewer codes; 2 to 5 is the range of the method.
"""

import pathlib
import runpy

from ml_collections import ConfigDict

# Variant -> config and variant that it is made of.
VARIANTS = {
    "": ("mnist5k", ""),
    "smallest": ("mnist5k", "smallest"),
    "d16": ("var_imagenet256", "d16"),
}


def get_config(variant: str = "") -> ConfigDict:
    """Variants: '', 'smallest' and 'd16'."""
    if variant not in VARIANTS:
        raise ValueError(f"Unknown variant {variant!r}; choose one of {', '.join(VARIANTS)}.")
    name, base = VARIANTS[variant]
    path = pathlib.Path(__file__).parents[1] / f"{name}.py"
    config = runpy.run_path(str(path))["get_config"](base)
    config.sampling.processors = (dict(kind="green_list", key=20260, delta=2.0),)
    return config
