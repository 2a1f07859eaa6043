"""Conditioning on the names of the classes, read as text through cross-attention.

    python -m launch.train --config configs/family/class_names.py --workdir runs/names \
        --config.tokenizer_checkpoint=runs/mnist/tokenizer --config.token_cache=runs/mnist/tokens

'' are the digits of configs/mnist5k.py ("zero", "one", ...), with its tokenizer; 'smallest' takes
seconds and means nothing; 'd16' is configs/var_imagenet256.py:d16 with the names of ImageNet's
classes, not trained here.
"""

import pathlib
import runpy

from ml_collections import ConfigDict

from var_jax.data.imagenet import class_table

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def get_config(variant: str = "") -> ConfigDict:
    """Variants: '', 'smallest' and 'd16'."""
    if variant not in ("", "smallest", "d16"):
        raise ValueError(f"Unknown variant {variant!r}; choose '', 'smallest' or 'd16'.")
    if variant == "d16":
        config, names = (
            _load("var_imagenet256.py", variant),
            tuple(name for _, name in class_table()),
        )
    else:
        config, names = _load("mnist5k.py", variant), DIGITS
    config.model.conditioner = dict(kind="class_names", names=names)
    config.model.cross_attention = True
    return config


def _load(name: str, *variant: str) -> ConfigDict:
    path = pathlib.Path(__file__).parents[1] / name
    return runpy.run_path(str(path))["get_config"](*variant)
