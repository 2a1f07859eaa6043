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
    path = pathlib.Path(__file__).parent / "xar.py"
    config = runpy.run_path(str(path))["get_config"]("base" if variant in SIZES else variant)
    config.unlock()
    config.model.transformer = "acdit"
    config.sampling.update(cfg_schedule="constant", solver="heun")
    if variant in SIZES:
        _imagenet(config, variant)
    elif variant == "":
        config.model.update(depth=4, scan_unroll=4)
        config.sampling.num_steps = 15
    return config.lock()


def _imagenet(config: ConfigDict, variant: str) -> None:
    depth, width, heads = SIZES[variant]
    config.model.update(depth=depth, width=width, num_heads=heads)
    config.train.update(num_steps=EPOCHS * IMAGES // BATCH, batch_size=BATCH)
    config.train.optimizer = dict(
        learning_rate=1e-4, schedule="constant", weight_decay=0.05, b2=0.95, clip_norm=1.0
    )
    config.sampling.update(cfg=0.5, num_steps=25)
