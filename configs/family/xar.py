"""xAR: cells of an image, one after the other, from a transformer that denoises (arXiv 2502.20388).

    python -m launch.train --model tokenizer --config configs/family/xar.py \
        --workdir runs/xar/tokenizer
    python -m launch.cache_tokens --tokenizer runs/xar/tokenizer --output runs/xar/tokens --crops 4
    python -m launch.train --config configs/family/xar.py --workdir runs/xar/transformer \
        --config.tokenizer_checkpoint=runs/xar/tokenizer --config.token_cache=runs/xar/tokens

Tokenizer and tokens are those of mar.py. What is drawn at once is a choice: with patch_nums=(16,),
model.cells=2 is the published model of four cells, 1 a diffusion of the whole image and 16 one of
each token after the other (256 loops to compile); model.cells=1 with patch_nums=(1, 2, 4, 8, 16)
draws level after level.

Sampling integrates a stochastic differential equation; the ordinary one, or fewer steps for later
cells (DiSA), are of sampling alone:

    python -m launch.sample --checkpoint runs/xar/transformer --labels 3,1 --output digits.png \
        --sampling '{"solver": "euler", "annealing": "linear", "last_num_steps": 8}'

'' is the digits on a CPU, 'smallest' takes seconds and means nothing. 'base', 'large' and 'huge'
are the published models for ImageNet at 256 px, on a pod as configs/var_imagenet256.py; they are
not trained here. Published (OliverRensu/xAR; 800 epochs): FID 1.72 (172M parameters), 1.28 (608M),
1.24 (1.1B).

cfg is the weight t of (1 + t) cond - t uncond at the last cell: xAR's cfg is 1 + t.
"""

import pathlib
import runpy

from ml_collections import ConfigDict

IMAGES, BATCH, EPOCHS = 1281167, 2048, 800
#: Variant -> blocks of each of the two stacks, width, heads; steps, cfg.
SIZES = {
    "base": (8, 768, 12, 40, 1.7),
    "large": (16, 1024, 16, 50, 1.3),
    "huge": (20, 1280, 16, 50, 1.2),
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
    config.model.update(transformer="xar", cells=2)
    config.model.head = dict(kind="velocity")
    config.train.objective = dict(kind="flow_matching")
    num_steps = _imagenet(config, variant) if variant in SIZES else _digits(config, variant)
    config.sampling.update(
        num_steps=num_steps,
        solver="euler_maruyama",
        guidance_interval=1.0,
        decoder=dict(kind="next_entity"),
    )
    return config.lock()


def _digits(config: ConfigDict, variant: str) -> int:
    config.patch_nums = (4,)
    smallest = variant == "smallest"
    depth, width = (1, 96) if smallest else (3, 128)
    config.model.update(depth=depth, scan_unroll=depth, width=width, num_heads=4)
    return 4 if smallest else 25


def _imagenet(config: ConfigDict, variant: str) -> int:
    depth, width, heads, steps, cfg = SIZES[variant]
    config.patch_nums = (16,)
    config.model.update(depth=depth, width=width, num_heads=heads)
    num_steps = EPOCHS * IMAGES // BATCH
    config.train.update(num_steps=num_steps, batch_size=BATCH, ema_decay=0.9999)
    config.train.optimizer = dict(
        learning_rate=5e-5,
        schedule="constant",
        warmup_steps=num_steps // 8,
        weight_decay=0.02,
        b2=0.96,
        clip_norm=1.0,
    )
    config.sampling.cfg = cfg
    return steps
