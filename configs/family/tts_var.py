"""TTS-VAR: many candidates at the coarse levels, fewer at the fine ones (arXiv 2507.18537).

Nothing is trained for it: a run of this config is one of its base, drawn by a search. A checkpoint
of any config is drawn so by launch.sample, launch.evaluate and launch.score_small_set with

    --sampling '{"decoder": {"kind": "search", "candidates": [8, 6, 4, 2], "cluster_levels": [1]},
        "reward": {"kind": "classifier", "file": "runs/quickstart/classifier.npz"}}'

Best-of-n is one number: {"kind": "search", "candidates": 4}. The reward may be 'likelihood' (the
one here, which needs nothing), 'classifier', 'feature_distance' (launch.train_classifier writes
their file) or any function: {"kind": "function", "function": "my_module:score"}.

The paper's candidates are 8,8,6,6,6,4,2,2,2,1,1,1,1 for the 13 levels of a text-to-image model at
1024 px; those for the 10 levels of 256 px are a guess, whose effect has not been measured.
benchmarks.compare_decoding measures searches on a small model.
"""

import pathlib
import runpy

from ml_collections import ConfigDict

# Variant -> config and variant that it is made of, candidates, and where clusters choose.
VARIANTS = {
    "": ("mnist5k", "", (8, 6, 4, 2), (1,)),
    "smallest": ("mnist5k", "smallest", (3, 2, 2, 1), (1,)),
    "d16": ("var_imagenet256", "d16", (8, 8, 6, 6, 6, 4, 2, 2, 2, 1), (2, 5)),
}


def get_config(variant: str = "") -> ConfigDict:
    """Variants: '', 'smallest' and 'd16'."""
    if variant not in VARIANTS:
        raise ValueError(f"Unknown variant {variant!r}; choose one of {', '.join(VARIANTS)}.")
    name, base, candidates, cluster_levels = VARIANTS[variant]
    path = pathlib.Path(__file__).parents[1] / f"{name}.py"
    config = runpy.run_path(str(path))["get_config"](base)
    with config.unlocked():
        config.sampling.reward = dict(kind="likelihood")
        config.sampling.decoder = dict(
            kind="search", candidates=candidates, cluster_levels=cluster_levels
        )
    return config
