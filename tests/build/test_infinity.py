"""configs/family/infinity.py from images to images: tokenizer, cache, transformer, samples."""

import jax
import numpy as np
from recipes import load

import var_jax
from var_jax import build
from var_jax.data.token_cache import TokenCacheSettings, TokenCacheWriter
from var_jax.parallel import sharding
from var_jax.pixels import to_float
from var_jax.train import loop


def cache(config, directory):
    """What launch.cache_tokens writes, of the first images of each split."""
    tokenizer = build.load_tokenizer(config.tokenizer_checkpoint)
    codec = tokenizer.module.codec

    @jax.jit
    def read(images):
        variables = {"params": tokenizer.params}
        return tokenizer.module.apply(variables, to_float(images), method="read")

    for split in ("train", "val"):
        source = build.source(config, split)
        batches = build.pipeline(config, source, 32, train=False, mesh=sharding.make_mesh())
        settings = TokenCacheSettings(
            tokenizer.fingerprint, codec.pyramid.shapes, codec.source, 32, 1, source.class_names,
            f"{config.data.source}:{split}", config.data.image_size, 0, build.cached_from(config),
        )  # fmt: skip
        batch = next(iter(batches.batches()))
        writer = TokenCacheWriter(directory / split, settings)
        writer.write(np.asarray(read(batch["image"])), batch["label"], batch["index"])
        writer.close()


def test_from_images_to_images(tmp_path):
    config = load("family/infinity", "smallest")
    workdir = tmp_path / "tokenizer"
    loop.train(build.tokenizer_experiment(config), workdir)
    config.tokenizer_checkpoint, config.token_cache = str(workdir), str(tmp_path / "tokens")
    cache(config, tmp_path / "tokens")
    loop.train(build.transformer_experiment(config), tmp_path / "transformer")

    model = var_jax.load(tmp_path / "transformer")
    images = model.sample([3, 1, 4])
    assert images.shape == (3, 32, 32, 1) and images.dtype == np.uint8
    bits = model.encode(images)
    assert bits.shape == (3, 37, 6) and set(np.unique(bits)) <= {0, 1}
    assert model.decode(bits).shape == images.shape
    # Untrained, a bit costs ln 2.
    nats = -model.log_likelihood(images, [3, 1, 4])
    np.testing.assert_allclose(nats, 37 * 6 * np.log(2), rtol=0.2)


def test_the_full_size_has_far_fewer_head_parameters_than_codes():
    config = load("family/infinity", "d16")
    network = build.network(config)
    shapes = sharding.unbox(jax.eval_shape(network.init_params, jax.random.key(0)))
    count = sum(x.size for x in jax.tree.leaves(shapes["head"]))
    assert count == 64 * (1024 + 1)
    assert network.transformer.code_dim == 32
