"""Trains a multi-scale tokenizer.

python -m launch.train_tokenizer --config configs/mnist5k.py --workdir runs/mnist/tokenizer

Run again, it resumes. The workdir gets checkpoints/, config.json, metrics.jsonl, tensorboard/
and samples/ (held-out originals above their reconstructions). config.evaluation
(var_jax/build/evaluation.py) says what is evaluated on the way: PSNR and pictures, rFID.
"""

from __future__ import annotations

from absl import flags, logging
from ml_collections import config_flags

from launch import cli

_CONFIG = config_flags.DEFINE_config_file("config", help_string="Python config file.")
_WORKDIR = cli.define_path("workdir", None, "Local or gs:// directory of the run.")
flags.DEFINE_bool("allow_config_change", False, cli.ALLOW_CONFIG_CHANGE)
flags.mark_flags_as_required(["config", "workdir"])


def main() -> None:
    from var_jax import build
    from var_jax.train.loop import train

    config, workdir = _CONFIG.value, _WORKDIR.value
    with cli.session(workdir, build.data_paths(config, cached=False), config) as stop:
        changes = cli.check_run(config, workdir, "tokenizer")
        experiment = build.tokenizer_experiment(config)
        cli.begin_run(config, workdir, experiment.metadata, changes)
        state = train(experiment, workdir, stop)
        if int(state.step) == experiment.settings.num_steps:
            logging.info("The tokenizer is in %s.", workdir)


if __name__ == "__main__":
    cli.run(main)
