"""NFIG (arXiv 2503.07076): levels are bands of frequencies, the lowest first.

    python -m launch.train --model tokenizer --config configs/family/nfig.py \
        --workdir runs/nfig/tokenizer
    python -m launch.cache_tokens --tokenizer runs/nfig/tokenizer \
        --output runs/nfig/tokens --crops 4
    python -m launch.train --config configs/family/nfig.py --workdir runs/nfig/transformer \
        --config.tokenizer_checkpoint=runs/nfig/tokenizer --config.token_cache=runs/nfig/tokens

The codec is VAR's, but goes down and up by discrete cosines: a level of n x n tokens holds the
n x n lowest frequencies of what the levels before left, and reads their sum without a loss. The
paper's code was not at hand, so this is chosen here: cosines (no seam at the borders, and as many
of them as tokens), no phi (it would spread a level over all frequencies), and the levels, one step
and 95 of 680 tokens fewer than VAR's; on the digits three steps in place of four.

'' and 'smallest' are otherwise configs/mnist5k.py, the others configs/var_imagenet256.py with the
tokenizer recipe of configs/tokenizer_imagenet256.py. Published: FID 2.81 at 1.25 times the speed of
VAR-d20. Not trained here.
"""

import pathlib
import runpy

from ml_collections import ConfigDict

SIZES = ("d16", "d20", "d24", "d30")


def get_config(variant: str = "") -> ConfigDict:
    """Variants: '', smallest, d16, d20, d24, d30."""
    if variant in ("", "smallest"):
        config = load("mnist5k", variant)
        config.patch_nums = (1, 2, 4)
        config.sampling.temperature = (1.6, 1.0, 0.7)
    elif variant in SIZES:
        config, trained = load("var_imagenet256", variant), load("tokenizer_imagenet256")
        config.patch_nums = (1, 2, 3, 4, 5, 7, 9, 12, 16)
        config.tokenizer = trained.tokenizer
        config.tokenizer_train = trained.tokenizer_train
    else:
        known = ", ".join(("''", "smallest", *SIZES))
        raise ValueError(f"Unknown variant {variant!r} of nfig; choose one of {known}.")
    config.tokenizer.update(phi_ratio=0.0, down="cosine", up="cosine")
    return config


def load(name: str, *variant: str) -> ConfigDict:
    """A config of the folder above."""
    path = pathlib.Path(__file__).parents[1] / f"{name}.py"
    config = runpy.run_path(str(path))["get_config"](*variant)
    config.unlock()
    return config
