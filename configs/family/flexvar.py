"""FlexVAR (arXiv 2502.20313): every level codes the whole image, so any schedule can be drawn.

    for model in tokenizer transformer; do
      python -m launch.train --model $model --config configs/family/flexvar.py \
          --workdir runs/flexvar/$model --config.tokenizer_checkpoint=runs/flexvar/tokenizer
    done

Then other levels than the model's, for other numbers of steps and other sizes of images:

    model = var_jax.load("runs/flexvar/transformer")
    images = model.sample([3, 1], patch_nums=(1, 2, 4, 8))

'' and 'smallest' are digits on CPU, in minutes and in seconds; the others are ImageNet at 256 px,
with configs/var_imagenet256.py for all that is not said here. Published (cfg 2.5, 50,000 samples):
FID 3.05 (d16), 2.41 (d20), 2.21 (d24) in 10 steps, 2.08 (d24) in 13: patch_nums = (1, 2, 3, 4, 5,
6, 7, 8, 9, 10, 12, 14, 16). Not trained here.
"""

import pathlib
import runpy

from ml_collections import ConfigDict

IMAGES = 1281167
#: Epochs, learning rate a 256 images, gamma init, final learning rate.
RECIPES = {
    "d16": (180, 1e-4, 1e-3, 0.1),
    "d20": (250, 1e-4, 1e-3, 0.1),
    "d24": (350, 8e-5, 1e-4, 0.01),
}


def get_config(variant: str = "") -> ConfigDict:
    """Variants: '', smallest, d16, d20, d24."""
    if variant in ("", "smallest"):
        return _digits(variant)
    if variant in RECIPES:
        return _imagenet(variant)
    raise ValueError(f"Unknown variant {variant!r} of flexvar; choose '', smallest or d16 .. d24.")


def _digits(variant: str) -> ConfigDict:
    config = _base("mnist5k", variant)
    small = variant == "smallest"
    config.patch_nums = (1, 2, 3, 4) if small else (1, 2, 3, 4, 6, 8)
    schedules = dict(num_draws=6, ranges=((2, 3, 5), (1, 6, 7)))
    if small:
        # The model's own levels, or those without the third.
        schedules = dict(num_draws=1, ranges=((1, 3, 3),), drops=(0.0,), own_share=0.5)
    codec = dict(kind="ground_truth_vq", vocab_size=32 if small else 512, code_dim=8)
    with config.unlocked():
        _take_codec(config, codec)
        config.train.curriculum = dict(kind="random_schedules", **schedules)
        config.sampling = dict(cfg=1.5, cfg_schedule="ten_steps", top_k=0, top_p=0.98)
    if not small:
        # Eight by eight cells of 4 px: the last level holds all that is decoded.
        config.tokenizer.multipliers = (1,)
    return config


def _imagenet(variant: str) -> ConfigDict:
    config = _base("var_imagenet256", variant)
    epochs, rate, gamma, end = RECIPES[variant]
    config.train.update(num_steps=epochs * IMAGES // 768, batch_size=768)
    config.train.optimizer.update(
        learning_rate=rate,
        warmup_steps=config.train.num_steps // 50,
        end_factor=end,
        weight_decay_end=0.05,
    )
    config.model.adaln_gamma_init = gamma
    with config.unlocked():
        _take_codec(config, dict(kind="ground_truth_vq", vocab_size=8912, code_dim=32))
        config.tokenizer.channels = 128
        config.train.curriculum = dict(kind="random_schedules", num_draws=16)
        config.sampling = dict(
            cfg=2.5,
            cfg_schedule="ten_steps",
            top_k=900,
            top_p=0.95,
            processors=(dict(kind="greedy_at_unknown_sizes", sides=config.patch_nums),),
        )
    return config


def _base(name: str, variant: str) -> ConfigDict:
    path = pathlib.Path(__file__).parents[1] / f"{name}.py"
    config = runpy.run_path(str(path))["get_config"](variant)
    with config.unlocked():
        config.model.positions = dict(kind="resized_map")
    return config


def _take_codec(config: ConfigDict, codec: dict) -> None:
    """Puts a codec in the place of the residual one, whose keys stand in config.tokenizer."""
    for key in ("vocab_size", "code_dim", "phi_sharing"):
        del config.tokenizer[key]
    config.tokenizer.codec = codec
