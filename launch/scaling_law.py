"""Trains a family of sizes and fits power laws to their losses.

python -m launch.scaling_law --config configs/scaling_mnist5k.py --workdir runs/scaling \
    --config.tokenizer_checkpoint=runs/quickstart/tokenizer \
    --config.token_cache=runs/quickstart/tokens

Each size of config.scaling.sizes is an ordinary training run in WORKDIR/<size>, equal in all but
the size. Run again, it resumes the size it was at and leaves those that are done. WORKDIR gets
scaling.json, scaling.md and scaling.png: loss and token error, mean over all levels and of the
last one, against parameters and against training compute, with the laws L = (x / x0)^a and
L = L_inf + (x / x0)^a, their bootstrap intervals and the correlation of log x and log L.
"""

from __future__ import annotations

from absl import flags
from ml_collections import config_flags

from launch import cli

_CONFIG = config_flags.DEFINE_config_file("config", help_string="Config with the section scaling.")
_WORKDIR = cli.define_path("workdir", None, "Local or gs:// directory of all sizes.")
flags.mark_flags_as_required(["config", "workdir"])


def main() -> None:
    from var_jax.studies import scaling

    with cli.session(_WORKDIR.value, config=_CONFIG.value) as should_stop:
        scaling.study(_CONFIG.value, _WORKDIR.value, should_stop)


if __name__ == "__main__":
    cli.run(main)
