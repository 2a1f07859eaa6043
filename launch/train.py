"""Trains the scale-wise transformer.

python -m launch.train --config configs/mnist5k.py --workdir runs/mnist/transformer \
    --config.tokenizer_checkpoint=runs/mnist/tokenizer --config.token_cache=runs/mnist/tokens

Run again, it resumes. Without a token cache it encodes images in the training step. The workdir
gets checkpoints/, tokenizer/ (a copy of what it was trained with), config.json, metrics.jsonl,
tensorboard/ and samples/.
"""

from __future__ import annotations

from absl import flags, logging
from ml_collections import config_flags

from launch import cli

_CONFIG = config_flags.DEFINE_config_file("config", help_string="Python config file.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Local or gs:// directory of the run.")
flags.mark_flags_as_required(["config", "workdir"])


def main() -> None:
    import jax
    import numpy as np

    from var_jax import build, chips, flops
    from var_jax.evaluation.during_training import SampleGrid, ValidationLoss
    from var_jax.sampling.images import ImageSampler
    from var_jax.train import optim
    from var_jax.train.loop import train

    config, workdir = _CONFIG.value, _WORKDIR.value
    with cli.session(workdir) as stop:
        cli.record_run(config, workdir)
        tokenizer = build.load_tokenizer(config.tokenizer_checkpoint)
        build.use_tokenizer(config, tokenizer)
        cli.copy_tokenizer(tokenizer, workdir)

        settings = build.train_settings(config, "train")
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

        classes = min(evaluated.var.num_classes, 10)
        samples = SampleGrid(
            ImageSampler(
                evaluated.var,
                evaluated.head,
                tokenizer.module,
                tokenizer.params,
                build.sampler(config),
                mesh,
            ),
            np.tile(np.arange(classes), 4),
            config.seed,
            columns=classes,
        )
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
            evaluators=[ValidationLoss(evaluated, frozen, held_out, mesh), samples],
            initial_params=initial,
            should_stop=stop,
        )
        if int(state.step) == settings.num_steps:
            logging.info("The transformer is in %s.", workdir)


if __name__ == "__main__":
    cli.run(main)
