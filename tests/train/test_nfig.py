"""NFIG from tokenizer to samples by its smallest config."""

import numpy as np
import pytest
from recipes import load

import var_jax
from var_jax import build
from var_jax.train.metrics import read_metrics


@pytest.mark.slow
def test_tokenizer_and_transformer_train_in_bands_and_draw(tmp_path):
    config = load("family/nfig", "smallest")
    config.tokenizer_train.adversarial_weight = 0.0
    config.evaluation = dict(likelihood=False, samples_per_class=0, reconstructions=0)
    tokenizer, transformer = str(tmp_path / "tokenizer"), str(tmp_path / "transformer")
    assert build.run(config, tokenizer, "tokenizer")
    config.tokenizer_checkpoint = tokenizer
    assert build.run(config, transformer, "transformer")
    losses = [m["loss"] for m in read_metrics(transformer) if "loss" in m]
    assert losses and np.isfinite(losses).all()
    model = var_jax.load(transformer)
    codec = model.tokenizer.module.codec
    assert (codec.down, codec.up, codec.pyramid.length) == ("cosine", "cosine", 21)
    images = model.sample([3, 1])
    assert images.shape == (2, 32, 32, 1) and images.dtype == np.uint8
    assert model.encode(images).shape == (2, 21)
