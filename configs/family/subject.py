"""ARBooth (arXiv 2504.02612): a class more, from about ten images of one thing.

    python -m launch.train --config configs/family/subject.py:d16 --workdir runs/subject \
        --config.train.initial_checkpoint=runs/var_d16 \
        --config.tokenizer_checkpoint=runs/var_d16/tokenizer \
        --config.data.options.path=data/mug

The images are a folder, data/mug/<name of the thing>/*.jpg. Their class comes after those that the
model knows, which keep their numbers: it is 1000. While they are learned, the model is held at
what it said of images of any class, which it draws itself in each step. The paper draws the kind
that the thing is of alone (--config.train.objective.prior_class=504, a mug). Only the blocks' MLPs
and the table of classes train.

'' is the digits' model, with ten images of one thing in runs/subject/images; 'smallest' trains on
the digits themselves; d16 to d30 are VAR's at 256 px. The paper's is Infinity-2B: 500 steps of two
images, where cross-attention and MLPs train and a word of its own names the thing. Nothing is
published of VAR, and nothing was trained here on ImageNet.
"""

import pathlib
import runpy

from ml_collections import ConfigDict

SIZES = ("d16", "d20", "d24", "d30")


def get_config(variant: str = "") -> ConfigDict:
    """Variants: '', 'smallest', 'd16', 'd20', 'd24' and 'd30'."""
    if variant not in ("", "smallest", *SIZES):
        known = ", ".join(["''", "smallest", *SIZES])
        raise ValueError(f"Unknown variant {variant!r} of subject; choose one of {known}.")
    name = "var_imagenet256" if variant in SIZES else "mnist5k"
    path = pathlib.Path(__file__).parents[1] / f"{name}.py"
    config = runpy.run_path(str(path))["get_config"](variant)
    with config.unlocked():
        config.train.objective = dict(kind="subject", prior_weight=0.5)
        # About those of Infinity's thirteen that count in full.
        config.train.weights = dict(kind="leading", levels=6 if variant in SIZES else 2)
        config.train.trained = ("*/mlp/*", "*/class_embedding")
        config.train.optimizer.update(
            weight_decay=0.0, weight_decay_end=None, schedule="constant", warmup_steps=0
        )
        if variant != "smallest":
            config.data.update(
                source="folder", options=dict(path="runs/subject/images", held_out=1)
            )
            config.train.known_classes = 1000 if variant else 10
            config.model.num_classes = 0
            # Of the image that is held out: it rises when the others are known by heart.
            config.evaluation = dict(likelihood=True, samples_per_class=0)
    # In training a class is never left out: without it the model stays what it was.
    config.model.update(drop_path_rate=0.0, class_drop_rate=0.0)
    config.train.update(batch_size=8, num_steps=300)
    if variant in SIZES:
        # The rate is that of a batch of 256; this is 6e-5.
        config.train.optimizer.learning_rate = 2e-3
    elif variant:
        config.train.num_steps = 4
    else:
        config.train.optimizer.learning_rate = 6.4e-3
    return config
