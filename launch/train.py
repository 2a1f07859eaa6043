"""Trains the scale-wise transformer.

python -m launch.train --config configs/mnist5k.py --workdir runs/mnist/transformer \
    --config.tokenizer_checkpoint=runs/mnist/tokenizer --config.token_cache=runs/mnist/tokens

Run again, it resumes; where config or data would make it another run, it says how and ends, unless
--allow_config_change is given. Without a token cache it encodes images in the training step. The
workdir gets checkpoints/, tokenizer/ (a copy of what it was trained with), config.json,
metrics.jsonl, tensorboard/ and samples/. config.evaluation (var_jax/build/evaluation.py) says what
is evaluated on the way: held-out likelihood, samples, reconstructions, a small FID.
"""

from __future__ import annotations

from collections.abc import Callable

from absl import flags, logging
from ml_collections import ConfigDict, config_flags

from launch import cli

CONFIG = config_flags.DEFINE_config_file("config", help_string="Python config file.")
WORKDIR = cli.define_path("workdir", None, "Local or gs:// directory of the run.")
flags.DEFINE_bool("allow_config_change", False, cli.ALLOW_CONFIG_CHANGE)
flags.mark_flags_as_required(["config", "workdir"])


def main() -> None:
    from var_jax import build

    config, workdir = CONFIG.value, WORKDIR.value
    with cli.session(workdir, build.data_paths(config, cached=True), config) as stop:
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
    from var_jax import build
    from var_jax.train.loop import train

    changes = cli.check_run(config, workdir, "transformer")
    experiment = build.transformer_experiment(config)
    cli.begin_run(config, workdir, experiment.metadata, changes)
    state = train(experiment, workdir, should_stop)
    return int(state.step) >= experiment.settings.num_steps


if __name__ == "__main__":
    cli.run(main)
