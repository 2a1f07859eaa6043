"""RobusTok: a tokenizer whose decoder puts up with tokens that are nearly right (arXiv 2503.08354).

    python -m launch.train --model tokenizer --config configs/family/robustok.py \
        --workdir runs/robustok/tokenizer
    python -m launch.cache_tokens --tokenizer runs/robustok/tokenizer \
        --output runs/robustok/tokens --crops 4
    python -m launch.train --config configs/family/robustok.py \
        --workdir runs/robustok/transformer \
        --config.tokenizer_checkpoint=runs/robustok/tokenizer \
        --config.token_cache=runs/robustok/tokens

In training a tenth of the examples has each code replaced by one of the nearest; the published
rates are here for VAR's pyramid, whose later levels are of what the perturbed ones lack. Officially
the strength falls to a half from epoch 40 to 120 and the perturbed examples are the first of a
batch; here it stays, and each example draws. tokenizer.codec.lesson_rate=0.1 perturbs what the
transformer is taught too; it is a key of the tokenizer, so it is given when that is trained. How
well a tokenizer puts up with such tokens is its pFID:

    python -m launch.evaluate_tokenizer --tokenizer runs/robustok/tokenizer --inception W.pth \
        --output runs/robustok/scores --perturbed_rates 0.5,1 --perturbed_nearest 10,100

'' and 'smallest' are the digits; 'd16' is ImageNet at 256 px, the tokenizer as in
configs/tokenizer_imagenet256.py. Not trained here on ImageNet.
"""

import pathlib
import runpy

from ml_collections import ConfigDict

# Variant -> codes among which one is taken; the published 100 are of 4,096.
NEAREST = {"": 25, "smallest": 4, "d16": 100}
#: Keys of VAR's codec, which stand in config.tokenizer there.
CODES = (
    *("vocab_size", "code_dim", "phi_sharing", "phi_ratio", "normalize_codes", "beta"),
    *("down", "up"),
)


def get_config(variant: str = "") -> ConfigDict:
    """Variants: '', smallest, d16."""
    if variant not in NEAREST:
        raise ValueError(f"Unknown variant {variant!r}; choose one of {', '.join(NEAREST)}.")
    published = variant.startswith("d")
    config = _load("var_imagenet256" if published else "mnist5k", variant)
    with config.unlocked():
        if published:
            recipe = _load("tokenizer_imagenet256")
            config.tokenizer, config.tokenizer_train = recipe.tokenizer, recipe.tokenizer_train
        codec = {key: config.tokenizer[key] for key in CODES if key in config.tokenizer}
        for key in codec:
            del config.tokenizer[key]
        config.tokenizer.codec = dict(
            kind="perturbed_vq",
            **codec,
            example_rate=0.1,
            token_rate=1.0,
            num_nearest=NEAREST[variant],
            lesson_rate=0.5 if variant == "smallest" else 0.0,
        )
    return config


def _load(name: str, *variant: str) -> ConfigDict:
    path = pathlib.Path(__file__).parents[1] / f"{name}.py"
    return runpy.run_path(str(path))["get_config"](*variant)
