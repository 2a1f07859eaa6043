"""MVAR by its smallest config: on from a VAR, by slices of levels; samples without a cache."""

import numpy as np
import pytest
from recipes import load
from untrained import write_model

import var_jax
from var_jax import build
from var_jax.train.metrics import read_metrics


@pytest.mark.slow
def test_it_goes_on_from_a_var_by_slices_of_levels_and_draws(tmp_path):
    start = write_model(tmp_path / "var")
    config = load("family/mvar", "smallest")
    config.tokenizer_checkpoint = str(start / "tokenizer")
    config.train.update(num_steps=6, log_every=1, initial_checkpoint=str(start))
    with config.unlocked():
        config.evaluation = dict(likelihood=False, samples_per_class=0, reconstructions=0)
    assert build.run(config, str(tmp_path / "mvar"), "transformer")
    lines = read_metrics(tmp_path / "mvar")
    levels = [sorted(name for name in line if name.startswith("loss_level")) for line in lines]
    cycle = [["loss_level/0", "loss_level/1"], ["loss_level/2"], ["loss_level/3"]]
    assert levels == [*cycle, *cycle]
    images = var_jax.load(tmp_path / "mvar").sample([3, 1, 4])
    assert images.shape == (3, 32, 32, 1) and images.dtype == np.uint8
