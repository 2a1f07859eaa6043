"""MAR: one level of continuous tokens, drawn in a random order (arXiv 2406.11838).

    python -m launch.train --model tokenizer --config configs/family/mar.py \
        --workdir runs/mar/tokenizer
    python -m launch.cache_tokens --tokenizer runs/mar/tokenizer --output runs/mar/tokens --crops 4
    python -m launch.train --config configs/family/mar.py --workdir runs/mar/transformer \
        --config.tokenizer_checkpoint=runs/mar/tokenizer --config.token_cache=runs/mar/tokens

A masked autoencoder in place of VAR's transformer reads the tokens that are known; the head is that
of diffusion.py, the tokenizer that of flowar.py with a single level. num_iterations is free:

    python -m launch.sample --checkpoint runs/mar/transformer --labels 3,1 --output digits.png \
        --sampling '{"decoder": {"kind": "random_order", "num_iterations": 8, "num_stages": 2}}'

'' is the digits on a CPU, 'smallest' takes seconds and means nothing. 'base', 'large' and 'huge'
are the published models for ImageNet at 256 px, on a pod as configs/var_imagenet256.py; they are
not trained here. Published (LTH14/mar; 800 epochs, 50,000 samples of 256 iterations): FID 2.31
(208M parameters), 1.78 (479M), 1.55 (943M).

cfg is the weight t of (1 + t) cond - t uncond when all tokens are drawn: MAR's cfg is 1 + t.
"""

import pathlib
import runpy

from ml_collections import ConfigDict

IMAGES, BATCH, EPOCHS = 1281167, 2048, 800
#: Variant -> blocks of encoder and decoder each, width, heads; blocks and width of the head; cfg.
SIZES = {
    "base": (12, 768, 12, 6, 1024, 1.9),
    "large": (16, 1024, 16, 8, 1280, 2.0),
    "huge": (20, 1280, 16, 12, 1536, 2.2),
}


def get_config(variant: str = "") -> ConfigDict:
    """Variants: '', 'smallest', 'base', 'large' and 'huge'."""
    if variant not in ("", "smallest", *SIZES):
        raise ValueError(
            f"Unknown variant {variant!r}; choose '', 'smallest', {', '.join(map(repr, SIZES))}."
        )
    path = pathlib.Path(__file__).parent / "flowar.py"
    config = runpy.run_path(str(path))["get_config"]("d16" if variant in SIZES else variant)
    config.unlock()
    for key in ("adaln_gamma_init", "drop_path_rate"):
        del config.model[key]
    config.model.transformer = "mar"
    config.train.objective = dict(kind="random_order")
    if variant in SIZES:
        _imagenet(config, variant)
    else:
        _digits(config, variant)
    return config.lock()


def _digits(config: ConfigDict, variant: str) -> None:
    config.patch_nums = (4,)
    smallest = variant == "smallest"
    depth, head = (
        (1, dict(net_width=32, net_depth=1)) if smallest else (3, dict(net_width=256, net_depth=3))
    )
    config.model.update(depth=depth, scan_unroll=depth, num_buffer=2 if smallest else 8)
    config.model.head = dict(kind="diffusion", **head)
    config.train.optimizer.learning_rate = 1e-2
    config.sampling = dict(
        cfg=0.5,
        num_steps=4 if smallest else 50,
        decoder=dict(kind="random_order", num_iterations=4 if smallest else 16, num_stages=1),
    )


def _imagenet(config: ConfigDict, variant: str) -> None:
    depth, width, heads, net_depth, net_width, cfg = SIZES[variant]
    config.patch_nums = (16,)
    config.model.update(depth=depth, width=width, num_heads=heads, dropout=0.1)
    config.model.head = dict(kind="diffusion", net_width=net_width, net_depth=net_depth)
    num_steps = EPOCHS * IMAGES // BATCH
    config.train.update(num_steps=num_steps, batch_size=BATCH, ema_decay=0.9999)
    config.train.optimizer = dict(
        learning_rate=1e-4,
        schedule="constant",
        warmup_steps=num_steps // 8,
        weight_decay=0.02,
        clip_norm=3.0,
    )
    config.sampling = dict(
        cfg=cfg, num_steps=100, decoder=dict(kind="random_order", num_iterations=256)
    )
