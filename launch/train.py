"""Trains the scale-wise transformer.

python -m launch.train --config configs/mnist5k.py --workdir runs/mnist/transformer \
    --config.tokenizer_checkpoint=runs/mnist/tokenizer --config.token_cache=runs/mnist/tokens

Run again, it resumes. Without a token cache it encodes images in the training step. The workdir
gets checkpoints/, tokenizer/ (a copy of what it was trained with), config.json, metrics.jsonl,
tensorboard/ and samples/. config.evaluation (var_jax/build/evaluation.py) says what is evaluated
on the way: held-out likelihood, samples, reconstructions, a small FID.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from absl import flags, logging
from ml_collections import ConfigDict, config_flags

from launch import cli

CONFIG = config_flags.DEFINE_config_file("config", help_string="Python config file.")
WORKDIR = flags.DEFINE_string("workdir", None, "Local or gs:// directory of the run.")
flags.mark_flags_as_required(["config", "workdir"])


def main() -> None:
    from var_jax import build

    config, workdir = CONFIG.value, WORKDIR.value
    with cli.session(workdir, build.data_paths(config, cached=True)) as stop:
        if train_transformer(config, workdir, stop):
            logging.info("The transformer is in %s.", workdir)


def train_transformer(
    config: ConfigDict, workdir: str, should_stop: Callable[[int], bool] = lambda step: False
) -> bool:
    """Trains or goes on training the transformer of a config.

    Args:
      config: complete; what the tokenizer and the data say is filled in.
      workdir: local or gs:// directory of the run.
      should_stop: asked after each step; True saves and returns.

    Returns:
      Whether the training is at its end.
    """
    import jax

    from launch import evaluators
    from var_jax import build
    from var_jax.plan import chips, flops
    from var_jax.train import optim
    from var_jax.train.loop import train

    if not config.tokenizer_checkpoint:
        raise ValueError(
            "The transformer needs a tokenizer; give --config.tokenizer_checkpoint=<its workdir>."
        )
    cli.record_run(config, workdir)
    evaluation = build.evaluation_settings(config, "train")
    tokenizer = build.load_tokenizer(config.tokenizer_checkpoint)
    build.use_tokenizer(config, tokenizer)
    cli.copy_tokenizer(tokenizer, workdir)

    settings = build.train_settings(config, "train")
    settings = dataclasses.replace(settings, evaluate_every=evaluation.every)
    sources = {
        split: build.training_source(config, split, tokenizer.fingerprint)
        for split in ("train", "val")
    }
    build.set_num_classes(config, sources["train"].num_classes)
    cached = bool(config.token_cache)
    objective_at, evaluated = build.likelihood(config, tokenizer, cached)
    frozen = {"codec": tokenizer.params["codec"]} if cached else tokenizer.params
    mesh = build.make_mesh(config)
    batches = build.pipeline(config, sources["train"], settings.batch_size, train=True)
    held_out = build.pipeline(config, sources["val"], settings.batch_size, train=False)

    optimizer = build.optimizer_config(
        config.train.optimizer, "train.optimizer", settings.batch_size
    )
    initial = None
    if config.train.get("initial_checkpoint", ""):
        initial, _ = build.load_params(config.train.initial_checkpoint, "transformer", None)
    metadata = cli.metadata(config, "transformer", settings.ema_decay > 0)
    chip = chips.of_kind(jax.devices()[0].device_kind)
    state = train(
        name="transformer",
        objective_at=objective_at,
        optimizer=optim.make_optimizer(optimizer, settings.num_steps),
        frozen=frozen,
        batches=batches.batches,
        settings=settings,
        mesh=mesh,
        preset=config.sharding,
        workdir=workdir,
        metadata=dict(metadata, tokenizer_fingerprint=tokenizer.fingerprint),
        seed=config.seed,
        learning_rate=optim.learning_rate_schedule(optimizer, settings.num_steps),
        flops_per_image=3 * flops.forward_flops(evaluated.var, evaluated.head.vocab_size),
        peak_flops=chip.flops if chip else 0.0,
        evaluators=evaluators.make(
            config, evaluation, tokenizer, evaluated, frozen, held_out, mesh
        ),
        initial_params=initial,
        should_stop=should_stop,
    )
    return int(state.step) >= settings.num_steps


if __name__ == "__main__":
    cli.run(main)
