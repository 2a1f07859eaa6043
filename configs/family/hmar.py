"""HMAR's next-scale stage (arXiv 2506.04421): each level attends to itself alone, so no cache.

    python -m launch.train --config configs/family/hmar.py --workdir runs/hmar/transformer \
        --config.tokenizer_checkpoint=runs/mnist/tokenizer --config.token_cache=runs/mnist/tokens

The tokenizer is VAR's: '' and 'smallest' take that of configs/mnist5k.py, the others that of
configs/var_imagenet256.py, whose recipes they follow. Published (256 px, 50,000 samples, with the
masked stage): FID 3.01 (d16), 2.50 (d20), 2.10 (d24), 1.95 (d30). Not trained here.
"""

import pathlib
import runpy

from ml_collections import ConfigDict

BASES = {
    "": ("mnist5k", ""),
    "smallest": ("mnist5k", "smallest"),
    **{size: ("var_imagenet256", size) for size in ("d16", "d20", "d24", "d30")},
}


def get_config(variant: str = "") -> ConfigDict:
    """Variants: '', smallest, d16, d20, d24, d30."""
    if variant not in BASES:
        raise ValueError(f"Unknown variant {variant!r} of hmar; choose one of {list(BASES)}.")
    name, of = BASES[variant]
    path = pathlib.Path(__file__).parents[1] / f"{name}.py"
    config = runpy.run_path(str(path))["get_config"](of)
    with config.unlocked():
        config.model.context = dict(kind="own_scale")
        config.train.weights = dict(kind="log_normal")
    if name == "var_imagenet256":
        config.sampling.update(cfg=1.7, top_k=1000, top_p=0.99)
    return config
