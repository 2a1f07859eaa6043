"""Infinity (arXiv 2412.04431) for classes: bits instead of codes, and their correction.

    python -m launch.train --model tokenizer --config configs/family/infinity.py \
        --workdir runs/infinity/tokenizer
    python -m launch.cache_tokens --tokenizer runs/infinity/tokenizer \
        --output runs/infinity/tokens --crops 4
    python -m launch.train --config configs/family/infinity.py --workdir runs/infinity/transformer \
        --config.tokenizer_checkpoint=runs/infinity/tokenizer \
        --config.token_cache=runs/infinity/tokens

Variants: '' is the 5,000 digits on two CPU cores, 'smallest' the same in seconds, for tests. 'd16'
is ImageNet at 256 px with VAR's recipe: the transformer of configs/var_imagenet256.py:d16, 32 bits
for each token and the tokenizer recipe of configs/tokenizer_imagenet256.py. Its authors trained on
texts; nobody has trained it here.

Official flag -> key: noise_apply_layers, noise_apply_strength -> tokenizer.codec.flip_levels,
flip_strength; apply_spatial_patchify -> tokenizer.codec.patch; reweight_loss_by_scale ->
train.weights; rope2d_normalized_by_hw=2 -> model.positions; cfg, tau -> sampling.cfg + 1,
temperature. A flip strength is drawn for each example here, not for a whole batch. With flips a
token cache holds features in float16; without (flip_levels=0) packed bits, a sixth of the bytes.
"""

import pathlib
import runpy

from ml_collections import ConfigDict

#: What a tokenizer of codes says, and this one does not.
CODES = ("vocab_size", "code_dim", "phi_sharing", "phi_ratio", "normalize_codes", "beta")
LIFE = ("warmup_steps", "restart_every", "restart_until")


def get_config(variant: str = "") -> ConfigDict:
    """Variants: '', 'smallest' and 'd16'."""
    if variant not in ("", "smallest", "d16"):
        raise ValueError(
            f"Unknown variant {variant!r} of infinity; choose '', 'smallest' or 'd16'."
        )
    config = imagenet() if variant == "d16" else digits(variant)
    for section, keys in ((config.tokenizer, CODES), (config.tokenizer_train, LIFE)):
        for key in set(keys) & set(section):
            del section[key]
    config.model.head = "bitwise"
    config.model.positions = dict(kind="rotary_2d", num_levels=len(config.patch_nums))
    config.train.weights = "sqrt_area"
    config.sampling = dict(cfg=1.5, cfg_schedule="constant", temperature=1.0, top_p=0.97)
    return config


def digits(variant: str) -> ConfigDict:
    """As configs/mnist5k.py, with bits and without an adversary."""
    config = load("mnist5k.py", variant)
    bits = 6 if variant == "smallest" else 16
    config.tokenizer.codec = dict(kind="bitwise", num_bits=bits, flip_levels=3, flip_strength=0.3)
    adversary = [
        k for k in config.tokenizer_train if k.startswith(("adversarial", "discriminator"))
    ]
    for key in adversary:
        del config.tokenizer_train[key]
    return config


def imagenet() -> ConfigDict:
    """configs/var_imagenet256.py:d16 over the recipe of configs/tokenizer_imagenet256.py."""
    config, tokenizer = load("var_imagenet256.py", "d16"), load("tokenizer_imagenet256.py")
    config.tokenizer = tokenizer.tokenizer
    config.tokenizer.codec = dict(kind="bitwise", num_bits=32, flip_levels=10, flip_strength=0.3)
    config.tokenizer_train = tokenizer.tokenizer_train
    return config


def load(name: str, *variant: str) -> ConfigDict:
    """A config of the folder above."""
    path = pathlib.Path(__file__).parents[1] / name
    config = runpy.run_path(str(path))["get_config"](*variant)
    config.unlock()
    return config
