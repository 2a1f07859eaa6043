"""Trains every method of the family alike, draws from each and compares.

python -m launch.compare_methods --config configs/family/compare.py --workdir runs/compare

Each method and seed is an ordinary training run in WORKDIR/METHOD/SEED; methods with the same
tokenizer share it and its tokens (WORKDIR/tokenizers), those that differ from another in sampling
alone share its run. Run again, the command resumes the run it was at and leaves those that are
done. After each seed WORKDIR gets comparison.md, comparison.json, curves.png and a grid of samples
for each method: held-out loss, label accuracy, Frechet distance and diversity by a classifier of
the real pictures, parameters, tokens, operations, times, passes and bytes of cache. Runs on one
host.
"""

from __future__ import annotations

from absl import flags
from ml_collections import config_flags

from launch import cli

_CONFIG = config_flags.DEFINE_config_file(
    "config", help_string="Config with the sections comparison and methods."
)
_WORKDIR = cli.define_path("workdir", None, "Local or gs:// directory of all methods.")
flags.mark_flags_as_required(["config", "workdir"])


def main() -> None:
    from var_jax.studies.comparison import Study

    cli.on_one_host()
    Study(_CONFIG.value, _WORKDIR.value).run()


if __name__ == "__main__":
    cli.run(main)
