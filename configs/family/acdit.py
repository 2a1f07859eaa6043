"""ACDiT: cells of an image in turn, each a diffusion after clean ones (arXiv 2412.07720).

    python -m launch.train --model tokenizer --config configs/family/acdit.py \
        --workdir runs/acdit/tokenizer
    python -m launch.cache_tokens --tokenizer runs/acdit/tokenizer --output runs/acdit/tokens \
        --crops 4
    python -m launch.train --config configs/family/acdit.py --workdir runs/acdit/transformer \
        --config.tokenizer_checkpoint=runs/acdit/tokenizer --config.token_cache=runs/acdit/tokens

Tokenizer and tokens are those of mar.py. model.cells=2 is four cells, as published; 1 is a
diffusion transformer (DiT) of the whole image. Against xar.py the context is clean in training too,
so a training pass reads nearly twice as many tokens.

'' is the digits on a CPU, 'smallest' takes seconds and means nothing. 'base', 'large', 'xlarge' and
'huge' have the blocks, widths and heads of thunlp/ACDiT and the defaults of its training, for
ImageNet at 256 px, on a pod as configs/var_imagenet256.py; they are not trained here. Two things
differ, so that it can be compared with xAR and MAR: it learns a flow in place of the noise of DDPM,
and latents of 16 x 16 tokens in place of 32 x 32. Its solver, DPM-Solver++, gives way to Heun's.

cfg is the weight t of (1 + t) cond - t uncond at all cells: ACDiT's cfg is 1 + t.
"""

import pathlib
import runpy

from ml_collections import ConfigDict

IMAGES, BATCH, EPOCHS = 1281167, 256, 1400
#: Variant -> blocks, width, heads.
SIZES = {
    "base": (12, 768, 12),
    "large": (24, 1024, 16),
    "xlarge": (28, 1152, 18),
    "huge": (32, 1280, 20),
}


def get_config(variant: str = "") -> ConfigDict:
    """Variants: '', 'smallest', 'base', 'large', 'xlarge' and 'huge'."""
    if variant not in ("", "smallest", *SIZES):
        raise ValueError(
            f"Unknown variant {variant!r}; choose '', 'smallest', {', '.join(map(repr, SIZES))}."
        )
    path = pathlib.Path(__file__).parent / "flowar.py"
    config = runpy.run_path(str(path))["get_config"]("d16" if variant in SIZES else variant)
    config.unlock()
    for key in ("adaln_gamma_init", "drop_path_rate"):
        del config.model[key]
    config.model.update(transformer="acdit", cells=2)
    config.model.head = dict(kind="velocity")
    config.train.objective = dict(kind="flow_matching")
    if variant in SIZES:
        _imagenet(config, variant)
    else:
        _digits(config, variant)
    config.sampling.update(
        cfg_schedule="constant",
        solver="heun",
        guidance_interval=1.0,
        decoder=dict(kind="next_entity"),
    )
    return config.lock()


def _digits(config: ConfigDict, variant: str) -> None:
    config.patch_nums = (4,)
    smallest = variant == "smallest"
    depth, width = (1, 96) if smallest else (4, 128)
    config.model.update(depth=depth, scan_unroll=depth, width=width, num_heads=4)
    config.sampling.num_steps = 4 if smallest else 15


def _imagenet(config: ConfigDict, variant: str) -> None:
    depth, width, heads = SIZES[variant]
    config.patch_nums = (16,)
    config.model.update(depth=depth, width=width, num_heads=heads)
    num_steps = EPOCHS * IMAGES // BATCH
    config.train.update(num_steps=num_steps, batch_size=BATCH, ema_decay=0.9999)
    config.train.optimizer = dict(
        learning_rate=1e-4, schedule="constant", weight_decay=0.05, b2=0.95, clip_norm=1.0
    )
    config.sampling.update(cfg=0.5, num_steps=25)
