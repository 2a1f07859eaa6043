"""A tensor axis that spans hosts: they hold parts of the same examples, and must load the same."""

import numpy as np
import processes
import pytest
from untrained import write_model

from var_jax import build
from var_jax.data.token_cache import TokenCacheSettings, TokenCacheWriter
from var_jax.train.metrics import read_metrics


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """Trains 20 steps on tokens that are random but not alike."""
    folder = tmp_path_factory.mktemp("tensor")
    tokenizer = build.load_tokenizer(write_model(folder / "model") / "tokenizer")
    pyramid, rng = tokenizer.module.codec.pyramid, np.random.default_rng(0)
    for split, count in (("train", 40), ("val", 10)):
        settings = TokenCacheSettings(
            fingerprint=tokenizer.fingerprint,
            shapes=pyramid.shapes,
            field=tokenizer.module.codec.source,
            num_images=count,
            crops=1,
            class_names=tuple("0123456789"),
            source=f"mnist5k:{split}",
            image_size=32,
            seed=0,
        )
        tokens = (rng.integers(0, 32, (count, pyramid.length)) ** 2 // 32).astype(np.int32)
        writer = TokenCacheWriter(folder / "tokens" / split, settings)
        writer.write(tokens, np.arange(count) % 10, np.arange(count))
        writer.close()

    def run(name, num_processes, devices, mesh):
        data, fsdp, tensor = mesh
        processes.run(
            num_processes,
            devices,
            "launch.train",
            "--config=configs/mnist5k.py:smallest",
            f"--workdir={folder / name}",
            f"--config.tokenizer_checkpoint={folder / 'model' / 'tokenizer'}",
            f"--config.token_cache={folder / 'tokens'}",
            "--config.sharding=fsdp_tensor",
            f"--config.mesh.data={data}",
            f"--config.mesh.fsdp={fsdp}",
            f"--config.mesh.tensor={tensor}",
            "--config.model.num_heads=4",
            "--config.model.width=256",
            "--config.train.num_steps=20",
            "--config.train.batch_size=8",
            "--config.train.log_every=1",
        )
        return [line["loss"] for line in read_metrics(folder / name) if "loss" in line]

    return run


@pytest.fixture(scope="module")
def one_device(command):
    return command("one", 1, 1, (1, 1, 1))


@pytest.mark.parametrize("mesh", [(1, 1, 4), (1, 2, 2)])
def test_the_losses_are_those_of_one_device(command, one_device, mesh):
    losses = command("x".join(map(str, mesh)), 2, 2, mesh)
    assert len(losses) == len(one_device) == 20 and losses[-1] < losses[0] - 0.1
    np.testing.assert_allclose(losses, one_device, rtol=1e-5)
