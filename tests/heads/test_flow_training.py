"""The config of FlowAR through the real path: tokenizer, transformer, checkpoint, images."""

import jax
import numpy as np
from recipes import load

from var_jax import build
from var_jax.decoding.images import ImageSampler
from var_jax.heads.flow import FlowSampling
from var_jax.train.metrics import read_metrics


def values(workdir, name):
    found = [line[name] for line in read_metrics(workdir) if name in line]
    assert found, f"Nothing is recorded of {name}."
    return found


def test_the_smallest_config_trains_and_draws(tmp_path):
    config = load("family/flowar", "smallest")
    config.tokenizer_train.adversarial_weight = 0.0
    config.evaluation = dict(every=4, likelihood=True, samples_per_class=0)
    assert build.run(config, tmp_path / "tokenizer", "tokenizer")
    assert np.isfinite(values(tmp_path / "tokenizer", "latent_std")).all()

    config.tokenizer_checkpoint = str(tmp_path / "tokenizer")
    assert build.run(config, tmp_path / "transformer", "transformer")
    for name in ("loss_mean", "eval/loss_last"):
        assert np.isfinite(values(tmp_path / "transformer", name)).all()

    loaded = build.load_transformer(tmp_path / "transformer")
    decoder = build.decoder(config)
    assert decoder.sampling == FlowSampling(config.sampling.num_steps, 0.9)
    sampler = ImageSampler(
        loaded.network, loaded.tokenizer.module, loaded.tokenizer.params, decoder
    )
    found = sampler(loaded.params, np.array([1, 3]), 0, np.array([0, 1]))
    assert found.images.shape == (2, 32, 32, 1)
    assert found.tokens.shape == (2, 21, 16)
    other = sampler(loaded.params, np.array([3, 5]), 0, np.array([1, 2]))
    np.testing.assert_allclose(found.tokens[1], other.tokens[0], atol=1e-4)


def test_the_full_size_config_builds():
    config = load("family/flowar", "d16")
    build.check_config(config)
    network, tokenizer = build.network(config), build.tokenizer(config)
    params = jax.eval_shape(network.init_params, jax.random.key(0))
    assert params["head"]["velocity"]["out"]["kernel"].unbox().shape == (1024, 16)
    assert tokenizer.codec.source.shape == (16, 16, 16)
    build.vqgan(config)
    build.decoder(config).sampling.at(4, build.pyramid(config))
