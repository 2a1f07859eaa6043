"""MVAR (arXiv 2505.12742): each level sees itself alone, and of the finest ones only what is near.

    python -m launch.train --config configs/family/mvar.py --workdir runs/mvar/transformer \
        --config.tokenizer_checkpoint=runs/mnist/tokenizer --config.token_cache=runs/mnist/tokens

The tokenizer is VAR's, and the parameters have its names and shapes: a run goes on from a VAR with
--config.train.initial_checkpoint=DIR, which the variants '..._tuned' are made for. A step trains
the eight coarse levels together, or one of the two fine ones alone: eight steps, one, and one. ''
and 'smallest' follow configs/mnist5k.py, with squares of side 3 in place of 7 at the last two
levels, and train two levels, one, and one in turn; the others follow configs/var_imagenet256.py.
Published (256 px, 50,000 samples): FID 3.01 (d16), and tuned 3.37, 2.83 and 2.15 (d16, d20, d24).
Nothing was trained here to any result.
"""

import pathlib
import runpy

from ml_collections import ConfigDict

IMAGES = 1281167
#: Size, batch size, epochs; guidance, top_k, top_p.
RECIPES = {
    "d16": ("d16", 448, 300, 2.7, 1200, 0.99),
    "d16_tuned": ("d16", 448, 80, 2.0, 1200, 0.99),
    "d20_tuned": ("d20", 192, 80, 1.5, 900, 0.96),
    "d24_tuned": ("d24", 448, 80, 1.4, 900, 0.96),
}


def get_config(variant: str = "") -> ConfigDict:
    """Variants: '', smallest, d16, d16_tuned, d20_tuned, d24_tuned."""
    if variant in ("", "smallest"):
        config, first, side, repeats = _base("mnist5k", variant), 2, 3, 1
    elif variant in RECIPES:
        config, first, side, repeats = _imagenet(*RECIPES[variant]), 8, 7, 8
    else:
        known = ", ".join(["''", "smallest", *RECIPES])
        raise ValueError(f"Unknown variant {variant!r} of mvar; choose one of {known}.")
    with config.unlocked():
        config.model.context = dict(kind="own_neighbourhood", first=first, side=side)
        config.train.curriculum = dict(kind="level_cycle", first=first, repeats=repeats)
    return config


def _imagenet(
    size: str, batch: int, epochs: int, cfg: float, top_k: int, top_p: float
) -> ConfigDict:
    config = _base("var_imagenet256", size)
    steps = epochs * IMAGES // batch
    config.train.update(num_steps=steps, batch_size=batch)
    config.train.optimizer.update(
        learning_rate=1e-4, warmup_steps=steps // 50, end_factor=0.1, weight_decay_end=0.05
    )
    config.model.adaln_gamma_init = 1e-3
    config.sampling.update(cfg=cfg, top_k=top_k, top_p=top_p)
    return config


def _base(name: str, variant: str) -> ConfigDict:
    path = pathlib.Path(__file__).parents[1] / f"{name}.py"
    return runpy.run_path(str(path))["get_config"](variant)
