"""Scaling laws on MNIST digits: six sizes of one transformer, in minutes on two CPU cores.

    bash launch/quickstart.sh   # makes the tokenizer and the tokens
    python -m launch.scaling_law --config configs/scaling_mnist5k.py --workdir runs/scaling \
        --config.tokenizer_checkpoint=runs/quickstart/tokenizer \
        --config.token_cache=runs/quickstart/tokens

Depth 1 to 6 with width 24 * depth and a head for each 24 of it, in place of the paper's 64 * depth:
the blocks' parameters grow with depth^3, from 11 thousand to 2.2 million. All sizes see the same
16,000 digits in the same order (3.6 epochs: these 4,500 digits are soon learnt by heart) with the
same settings, and are measured on the 500 held out.

`configs/scaling_mnist5k.py:smallest` trains three sizes for a few steps, for tests.
"""

import pathlib
import runpy

from ml_collections import ConfigDict


def get_config(variant: str = "") -> ConfigDict:
    """Variants: '' and 'smallest'."""
    if variant not in ("", "smallest"):
        raise ValueError(
            f"Unknown variant {variant!r} of scaling_mnist5k; choose '' or 'smallest'."
        )
    config = _base(variant)
    config.model.update(scan_unroll=1)
    config.train.update(num_steps=1000, batch_size=16, log_every=50, save_every=500)
    config.train.optimizer.update(learning_rate=2.4e-2, warmup_steps=100, end_factor=0.02)
    config.evaluation = dict(every=100, likelihood=True, samples_per_class=0)
    config.scaling = dict(
        on="held_out",
        resamples=1000,
        # Evaluations in the first fifth of a run, most of it warm-up, are on no frontier.
        frontier_start=0.2,
        sizes={
            f"d{depth}": dict(depth=depth, width=24 * depth, num_heads=depth)
            for depth in range(1, 7)
        },
    )
    if variant == "smallest":
        config.train.update(num_steps=4, log_every=2, save_every=2)
        config.train.optimizer.warmup_steps = 1
        config.evaluation.every = 2
        config.scaling.resamples = 20
        config.scaling.sizes = {
            f"d{depth}": dict(depth=depth, width=8 * depth, num_heads=1) for depth in (1, 2, 3)
        }
    return config


def _base(variant: str) -> ConfigDict:
    """configs/mnist5k.py; configs are files, not modules of a package."""
    path = pathlib.Path(__file__).with_name("mnist5k.py")
    return runpy.run_path(str(path))["get_config"](variant)
