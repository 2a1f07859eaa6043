"""Trains a model of a config: the multi-scale tokenizer, or the scale-wise transformer.

python -m launch.train --model tokenizer --config configs/mnist5k.py \
    --workdir runs/mnist/tokenizer
python -m launch.train --config configs/mnist5k.py --workdir runs/mnist/transformer \
    --config.tokenizer_checkpoint=runs/mnist/tokenizer --config.token_cache=runs/mnist/tokens

Run again, it resumes; another batch size, schedule, model, seed or data set is refused then, see
--allow_config_change. Without a token cache a transformer's step encodes images. The workdir gets
checkpoints/, config.json, metrics.jsonl, tensorboard/ and samples/, a transformer's also
tokenizer/, a copy of what it was trained with. config.evaluation (var_jax/build/evaluation.py)
says what is evaluated on the way: held-out likelihood, samples, reconstructions, FID and rFID.
"""

from __future__ import annotations

from absl import flags, logging
from ml_collections import config_flags

from launch import cli

_CONFIG = config_flags.DEFINE_config_file("config", help_string="Python config file.")
_WORKDIR = cli.define_path("workdir", None, "Local or gs:// directory of the run.")
_MODEL = flags.DEFINE_enum(
    "model", "transformer", ["tokenizer", "transformer"], "Which model of the config to train."
)
_ALLOW_CONFIG_CHANGE = flags.DEFINE_bool(
    "allow_config_change",
    False,
    "Resume although config or data differ in what gives the run its meaning.",
)
flags.mark_flags_as_required(["config", "workdir"])


def main() -> None:
    from var_jax import build

    config, workdir, model = _CONFIG.value, _WORKDIR.value, _MODEL.value
    data = build.data_paths(config, cached=model == "transformer")
    with cli.session(workdir, data, config) as stop:
        if build.run(config, workdir, model, stop, allow_change=_ALLOW_CONFIG_CHANGE.value):
            logging.info("The %s is in %s.", model, workdir)


if __name__ == "__main__":
    cli.run(main)
