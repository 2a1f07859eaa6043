"""What a run reports on the terminal, or in a notebook."""

from __future__ import annotations

import logging as std_logging
import os
import pathlib

from absl import logging

_ROOT = pathlib.Path(__file__).parents[1]
_PACKAGES = tuple(f"{_ROOT / name}{os.sep}" for name in ("launch", "var_jax"))


def show() -> None:
    """Shows what a run reports, with the time, and no more; notebooks call it too."""
    logging.use_absl_handler()
    logging.set_verbosity(logging.INFO)
    logging.get_absl_handler().setFormatter(
        std_logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S")
    )
    # Orbax reports every file through the same logger; keep the run's own lines readable.
    logging.get_absl_handler().addFilter(_is_worth_reading)


def _is_worth_reading(record: std_logging.LogRecord) -> bool:
    if record.name == "gcsfs" and record.exc_info:
        return False  # What it raises it also prints, trace and all.
    # By the whole path: a clone, and the environment in it, lies in a folder of the same name.
    ours = record.pathname.startswith(_PACKAGES)
    # Orbax also warns about files that its own older formats had.
    orbax = f"{os.sep}orbax{os.sep}" in record.pathname
    return ours or record.levelno > (std_logging.WARNING if orbax else std_logging.INFO)
