"""HMAR's next-scale stage by its smallest config: training, and sampling without a cache."""

import numpy as np
from recipes import load
from untrained import write_model

import var_jax
from var_jax import build


def test_it_trains_and_draws(tmp_path):
    tokenizer = write_model(tmp_path / "var") / "tokenizer"
    config = load("family/hmar", "smallest")
    config.tokenizer_checkpoint = str(tokenizer)
    with config.unlocked():
        config.evaluation = dict(likelihood=True, samples_per_class=0, reconstructions=0)
    assert build.run(config, str(tmp_path / "hmar"), "transformer")
    images = var_jax.load(tmp_path / "hmar").sample([3, 1, 4])
    assert images.shape == (3, 32, 32, 1) and images.dtype == np.uint8
