"""Distillation: a transformer learns from a larger one's probabilities, beside the data.

    python -m launch.train --config configs/family/distillation.py --workdir runs/small \
        --config.train.objective.teacher=runs/mnist/transformer \
        --config.tokenizer_checkpoint=runs/mnist/tokenizer --config.token_cache=runs/mnist/tokens

The teacher is a workdir of a transformer over the same tokens, of any size, context and positions:
--config.model.context=own_scale makes an HMAR of a VAR. For CoDe's refiner, which draws the last
levels alone (configs/family/code.py), give --config.train.objective.first_level, 8 at 256 px.

'' is half of the digits' model, 'smallest' a test's; d16 learns from d30 in the recipe of its size,
which costs the teacher's pass in every step. CoDe tunes its refiner from the published d16; neither
that nor this has been trained here on ImageNet.
"""

import pathlib
import runpy

from ml_collections import ConfigDict


def get_config(variant: str = "") -> ConfigDict:
    """Variants: '', 'smallest' and 'd16'."""
    if variant not in ("", "smallest", "d16"):
        raise ValueError(
            f"Unknown variant {variant!r} of distillation; choose '', smallest or d16."
        )
    name = "var_imagenet256" if variant == "d16" else "mnist5k"
    path = pathlib.Path(__file__).parents[1] / f"{name}.py"
    config = runpy.run_path(str(path))["get_config"](variant)
    with config.unlocked():
        config.train.objective = dict(
            kind="distillation", teacher="", alpha=0.5, temperature=1.0, first_level=0
        )
        if not variant:
            config.model.update(depth=2, scan_unroll=2)
    return config
