"""A diffusion of every token for itself, on continuous latents (the head of MAR, 2406.11838).

    python -m launch.train --config configs/family/diffusion.py \
        --workdir runs/diffusion/transformer \
        --config.tokenizer_checkpoint=runs/flowar/tokenizer \
        --config.token_cache=runs/flowar/tokens

Tokenizer, levels and transformer are those of flowar.py, whose header says how to make the first.
In place of its small transformer an MLP denoises each token of a level alone, given its state: the
tokens of a level are independent of each other, as VAR's codes are.

'' is the digits on a CPU, 'smallest' takes seconds and means nothing. 'd16' is for ImageNet at
256 px: the head of MAR-L on VAR's transformer, not trained here. MAR-L itself has FID 1.78, and
draws its 256 tokens in random order.

cfg is the weight t of (1 + t) cond - t uncond at the last level, on the predicted noise.
"""

import pathlib
import runpy

from ml_collections import ConfigDict


def get_config(variant: str = "") -> ConfigDict:
    """Variants: '', 'smallest' and 'd16'."""
    path = pathlib.Path(__file__).parent / "flowar.py"
    config = runpy.run_path(str(path))["get_config"](variant)
    width, depth = {"": (256, 3), "smallest": (32, 1), "d16": (1280, 8)}[variant]
    config.model.head = dict(kind="diffusion", net_width=width, net_depth=depth)
    steps = {"": 50, "smallest": 4, "d16": 100}[variant]
    config.sampling = dict(cfg=0.5 if variant != "d16" else 2.0, num_steps=steps, temperature=1.0)
    return config
