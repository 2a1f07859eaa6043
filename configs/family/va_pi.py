"""VA-pi: a transformer is fine-tuned by the pixels that its tokens decode to (2512.19680).

    python -m launch.train --config configs/family/va_pi.py --workdir runs/va_pi \
        --config.train.initial_checkpoint=runs/mnist/transformer \
        --config.tokenizer_checkpoint=runs/mnist/tokenizer --config.token_cache=runs/mnist/tokens

Without --config.token_cache the pixels that draws are compared with are the picture's own, not its
reconstruction's. It can be trained through an adapter (--config.train.adapter.kind=lora).

d16 to d30 are VAR's at 256 px, with the batch, draws and rate that are published for LlamaGen-XXL,
whose FID without guidance went from 14.36 to 7.65 in one pass over a hundredth of ImageNet, here
800 steps. The reward there adds LPIPS to the squared error, which alone is the reward here. Nothing
is published of VAR, and nothing was trained here on ImageNet.
"""

import pathlib
import runpy

from ml_collections import ConfigDict

SIZES = ("d16", "d20", "d24", "d30")
IMAGES = 1281167


def get_config(variant: str = "") -> ConfigDict:
    """Variants: '', 'smallest', 'd16', 'd20', 'd24' and 'd30'."""
    if variant not in ("", "smallest", *SIZES):
        known = ", ".join(["''", "smallest", *SIZES])
        raise ValueError(f"Unknown variant {variant!r} of va_pi; choose one of {known}.")
    name = "var_imagenet256" if variant in SIZES else "mnist5k"
    path = pathlib.Path(__file__).parents[1] / f"{name}.py"
    config = runpy.run_path(str(path))["get_config"](variant)
    with config.unlocked():
        config.train.objective = dict(kind="va_pi", draws=8, likelihood_weight=0.1)
    config.model.drop_path_rate = 0.0
    if variant in SIZES:
        # The rate is that of a batch of 256.
        config.train.update(batch_size=16, num_steps=IMAGES // 100 // 16)
        config.train.optimizer.update(learning_rate=1.6e-5, warmup_steps=0, schedule="constant")
    elif variant:
        # The rate stays that of a training from nothing: by less a few steps hardly change the
        # loss, of which the policy's part is always 0, whatever its gradient.
        config.train.objective.draws = 2
    else:
        config.train.num_steps = 300
        config.train.optimizer.update(learning_rate=1e-3, warmup_steps=20)
    return config
