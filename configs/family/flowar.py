"""Flow matching on continuous latents, level by level (FlowAR, arXiv 2412.15205).

    python -m launch.train --model tokenizer --config configs/family/flowar.py \
        --workdir runs/flowar/tokenizer
    python -m launch.cache_tokens --tokenizer runs/flowar/tokenizer --output runs/flowar/tokens \
        --crops 4
    python -m launch.train --config configs/family/flowar.py --workdir runs/flowar/transformer \
        --config.tokenizer_checkpoint=runs/flowar/tokenizer \
        --config.token_cache=runs/flowar/tokens

The levels are the downsampled latents of a variational autoencoder, drawn anew in every epoch from
the posteriors that the token cache holds; vq_weight is that of the divergence. A small transformer
draws the tokens of a level together, from noise. '' is the digits of configs/mnist5k.py on a CPU,
'smallest' takes seconds and means nothing. 'd16' is for ImageNet at 256 px, on a pod as
configs/var_imagenet256.py:d16: the head, levels and schedule of FlowAR-S with the transformer of
VAR, not FlowAR's own; it is not trained here. FlowAR-S (170M) has FID 3.61 in its repository.

cfg is the weight t of (1 + t) cond - t uncond at the last level: FlowAR's cfg is 1 + t.
"""

import pathlib
import runpy

from ml_collections import ConfigDict

IMAGES, BATCH, EPOCHS = 1281167, 2048, 400


def get_config(variant: str = "") -> ConfigDict:
    """Variants: '', 'smallest' and 'd16'."""
    if variant not in ("", "smallest", "d16"):
        raise ValueError(f"Unknown variant {variant!r}; choose '', 'smallest' or 'd16'.")
    config = _imagenet() if variant == "d16" else _digits(variant)
    # No codes: nothing is looked up, and no codebook lives.
    codes = ("vocab_size", "code_dim", "phi_sharing", "phi_ratio", "normalize_codes", "beta")
    life = ("warmup_steps", "restart_every", "restart_until")
    for section, keys in ((config.tokenizer, codes), (config.tokenizer_train, life)):
        for key in set(keys) & set(section):
            del section[key]
    config.tokenizer.codec = dict(kind="kl_latent", code_dim=16)
    return config


def _digits(variant: str) -> ConfigDict:
    config = _load("mnist5k.py", variant)
    config.patch_nums = (1, 2, 4)
    config.tokenizer_train.vq_weight = 1e-4
    config.model.head = dict(kind="flow", net_width=128, net_depth=2)
    config.sampling = dict(cfg=0.5, num_steps=20, guidance_interval=0.9)
    if variant == "smallest":
        config.model.head.update(net_width=32, net_depth=1)
        config.sampling.num_steps = 4
    return config


def _imagenet() -> ConfigDict:
    config, tokenizer = _load("var_imagenet256.py", "d16"), _load("tokenizer_imagenet256.py")
    config.patch_nums = (1, 2, 4, 8, 16)
    config.tokenizer = tokenizer.tokenizer
    config.tokenizer_train = tokenizer.tokenizer_train
    # Latent diffusion's 1e-6, which is for sums over an image's latents and over its pixels.
    config.tokenizer_train.vq_weight = 1e-6 * (16 * 16 * 16) / (256 * 256 * 3)
    config.model.head = dict(kind="flow", net_width=1024, net_depth=2)
    num_steps = EPOCHS * IMAGES // BATCH
    config.train.update(num_steps=num_steps, batch_size=BATCH, ema_decay=0.9999)
    config.train.optimizer = dict(
        learning_rate=5e-5, schedule="constant", warmup_steps=num_steps // 4, weight_decay=0.02
    )
    config.sampling = dict(cfg=3.3, num_steps=25, guidance_interval=0.9)
    return config


def _load(name: str, *variant: str) -> ConfigDict:
    path = pathlib.Path(__file__).parents[1] / name
    return runpy.run_path(str(path))["get_config"](*variant)
