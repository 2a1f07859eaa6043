"""FlexVAR from tokenizer to samples by its smallest config: two schedules, one set of weights."""

import numpy as np
import pytest
from recipes import load

import var_jax
from var_jax import build
from var_jax.train import loop


@pytest.mark.slow
def test_one_set_of_weights_trains_on_and_draws_several_schedules(tmp_path, monkeypatch):
    config = load("family/flexvar", "smallest")
    config.tokenizer_train.adversarial_weight = 0.0
    config.train.num_steps = 8
    with config.unlocked():
        config.evaluation = dict(likelihood=False, samples_per_class=0, reconstructions=0)
    tokenizer, transformer = str(tmp_path / "tokenizer"), str(tmp_path / "transformer")
    assert build.run(config, tokenizer, "tokenizer")
    config.tokenizer_checkpoint = tokenizer

    steps, compiled = [], []
    monkeypatch.setattr(loop, "make_train_step", recorded(loop.make_train_step, steps))
    monkeypatch.setattr(loop, "jit_train_step", recorded(loop.jit_train_step, compiled))
    assert build.run(config, transformer, "transformer")
    # One program for each pyramid that was drawn, none twice.
    loaded = build.load_tokenizer(tokenizer)
    objective = build.objective(config, loaded, from_images=True)
    drawn = {objective.at(step).pyramid.patch_nums for step in range(8)}
    assert drawn == {(1, 2, 3, 4), (1, 2, 4)}
    assert len(steps) == len(compiled) == 2
    assert [program._cache_size() for program in compiled] == [1, 1]

    model = var_jax.load(transformer)
    own = model.sample([3, 1], top_k=1)
    assert own.shape == (2, 32, 32, 1)
    sizes = {(1, 2, 4): 32, (1, 2, 3, 4, 4, 4): 32, (1, 2, 5): 40, (1, 3): 24}
    for patch_nums, size in sizes.items():
        images = model.sample([3, 1], top_k=1, patch_nums=patch_nums)
        assert images.shape == (2, size, size, 1) and images.dtype == np.uint8


def recorded(function, calls):
    def call(*args, **kwargs):
        calls.append(function(*args, **kwargs))
        return calls[-1]

    return call
