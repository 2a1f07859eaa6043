"""Trains a multi-scale tokenizer.

python -m launch.train_tokenizer --config configs/mnist5k.py --workdir runs/mnist/tokenizer

Run again, it resumes. The workdir gets checkpoints/, config.json, metrics.jsonl, tensorboard/
and samples/ (held-out originals above their reconstructions). config.evaluation
(var_jax/build/evaluation.py) says what is evaluated on the way: PSNR and pictures, rFID.
"""

from __future__ import annotations

import dataclasses

from absl import flags, logging
from ml_collections import config_flags

from launch import cli

_CONFIG = config_flags.DEFINE_config_file("config", help_string="Python config file.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Local or gs:// directory of the run.")
flags.mark_flags_as_required(["config", "workdir"])


def main() -> None:
    from launch import evaluators
    from var_jax import build
    from var_jax.train import optim
    from var_jax.train.loop import train

    config, workdir = _CONFIG.value, _WORKDIR.value
    with cli.session(workdir, build.data_paths(config, cached=False)) as stop:
        cli.record_run(config, workdir)
        evaluation = build.evaluation_settings(config, "tokenizer_train")
        objective, frozen, optimizers = build.vqgan(config)
        settings = build.train_settings(config, "tokenizer_train")
        settings = dataclasses.replace(settings, evaluate_every=evaluation.every)
        mesh = build.make_mesh(config)
        images = build.pipeline(
            config, build.source(config, "train"), settings.batch_size, train=True
        )
        held_out = build.pipeline(
            config, build.source(config, "val"), settings.batch_size, train=False
        )
        state = train(
            name="tokenizer",
            objective_at=lambda step: objective,
            optimizer=optim.make_group_optimizer(optimizers, settings.num_steps),
            frozen=frozen,
            batches=images.batches,
            settings=settings,
            mesh=mesh,
            preset=config.sharding,
            workdir=workdir,
            metadata=cli.metadata(config, "tokenizer", settings.ema_decay > 0),
            seed=config.seed,
            learning_rate=optim.learning_rate_schedule(optimizers["tokenizer"], settings.num_steps),
            evaluators=evaluators.make_for_tokenizer(
                evaluation, objective.tokenizer, held_out, mesh
            ),
            should_stop=stop,
        )
        if int(state.step) == settings.num_steps:
            logging.info("The tokenizer is in %s.", workdir)


if __name__ == "__main__":
    cli.run(main)
