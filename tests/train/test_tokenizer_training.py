"""The tokenizer's trainer with its adversary, from a config, on a mesh: two optimizers, an EMA."""

import jax
import numpy as np
from recipes import load

from var_jax import build
from var_jax.parallel import sharding
from var_jax.train import loop, optim
from var_jax.train.experiment import Experiment


def small_config():
    """configs/tokenizer_imagenet256.py with its adversary on, for pictures of 8 px."""
    config = load("tokenizer_imagenet256")
    config.patch_nums = (1, 2)
    config.data.image_size = 8
    config.tokenizer.update(
        vocab_size=8, code_dim=4, channels=8, multipliers=(1, 1, 1), num_res_blocks=1,
        norm_groups=4, attention=False, dropout=0.0, dtype="float32", remat=False,
    )  # fmt: skip
    config.tokenizer_train.update(
        num_steps=4, batch_size=8, warmup_steps=1, adversarial_start=1, adversarial_ramp=1,
        restart_every=0, log_every=2, save_every=2, evaluate_every=0,
    )  # fmt: skip
    config.tokenizer_train.discriminator.update(channels=8, num_layers=1)
    for name in ("optimizer", "discriminator_optimizer"):
        config.tokenizer_train[name].update(warmup_steps=1, learning_rate=1e-2)
    return config


def run(workdir, devices, stop_at=None):
    config = small_config()
    objective, frozen, optimizers = build.vqgan(config)
    settings = build.train_settings(config, "tokenizer_train")

    def batches(start):
        for step in range(start, 10**9):
            index = np.arange(8, dtype=np.int32) + 8 * step
            image = np.random.default_rng(step).integers(0, 256, (8, 8, 8, 3), np.uint8)
            yield {"image": image, "index": index}

    experiment = Experiment(
        name="tokenizer",
        objective_at=lambda step: objective,
        optimizer=optim.make_group_optimizer(optimizers, settings.num_steps),
        frozen=frozen,
        batches=batches,
        settings=settings,
        mesh=sharding.make_mesh(data=1, fsdp=-1, devices=jax.devices()[:devices]),
        preset="fsdp",
        metadata={"kind": "test"},
        learning_rate=optim.learning_rate_schedule(optimizers["tokenizer"], settings.num_steps),
    )
    return loop.train(experiment, workdir, lambda step: step == stop_at)


def test_both_networks_train_shard_and_resume(tmp_path):
    straight = run(tmp_path / "straight", devices=4)
    stopped = run(tmp_path / "stopped", devices=4, stop_at=2)
    assert int(stopped.step) == 2
    resumed = run(tmp_path / "stopped", devices=4)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(resumed), jax.device_get(straight))
    moved = jax.tree.map(lambda a, b: np.any(a != b), straight.params, stopped.params)
    assert moved["tokenizer"]["encoder"]["conv_in"]["kernel"]
    assert moved["discriminator"]["conv_out"]["kernel"]
