"""A run of a config in a workdir: compared with what is there, recorded, trained."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence

import jax
from absl import logging
from etils import epath
from ml_collections import ConfigDict

from var_jax.build.experiment import tokenizer_experiment, transformer_experiment
from var_jax.build.resuming import changes_since, data_changes, identity
from var_jax.build.training import check_tools
from var_jax.parallel import distributed
from var_jax.paths import write_json, write_text
from var_jax.train.loop import train

#: What a config can train -> the section of its training, and how it is built.
MODELS = {
    "tokenizer": ("tokenizer_train", lambda config, workdir: tokenizer_experiment(config)),
    "transformer": ("train", transformer_experiment),
}


def run(
    config: ConfigDict,
    workdir: str,
    model: str,
    should_stop: Callable[[int], bool] = lambda step: False,
    *,
    allow_change: bool = False,
) -> bool:
    """Trains, or goes on training, a model of a config; every process calls it alike.

    Args:
      config: complete; what the tokenizer and the data say is filled in.
      workdir: local or gs:// directory of the run; gets config.json and commands.txt.
      model: of MODELS.
      should_stop: asked after each step; True saves and returns.
      allow_change: go on although config or data differ in what gives the run its meaning.

    Returns:
      Whether the training is at its end.

    Raises:
      ValueError: the run that is there has another meaning; or a package that the config asks for
        is missing.
      PreflightError: the hosts read different tokenizers or data.
    """
    section, make = MODELS[model]
    check_tools(config, section)
    # Before anything is built; of the data it is known only after.
    changes = [str(c) for c in changes_since(workdir, config, model, allow_change)]
    experiment = make(config, workdir)
    distributed.check_agreement(identity(experiment.metadata))
    changes += data_changes(workdir, experiment.metadata, allow_change)
    for change in changes:
        logging.info("Changed since the last checkpoint: %s.", change)
    _record(config, workdir, changes)
    state = train(experiment, workdir, should_stop)
    return int(state.step) >= experiment.settings.num_steps


def _record(config: ConfigDict, workdir: str, changes: Sequence[str]) -> None:
    """Writes config.json and adds the command, below what it changes, to commands.txt."""
    if jax.process_index():
        return
    folder = epath.Path(workdir)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", config.to_dict())
    commands = folder / "commands.txt"
    before = commands.read_text() if commands.exists() else ""
    notes = "".join(f"# {change}\n" for change in changes)
    write_text(commands, before + notes + shlex.join([sys.executable, *sys.argv]) + "\n")
