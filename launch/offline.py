"""What commands that only handle files do around their work: no accelerator, short errors."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence

from absl import logging


def parser(module: str, description: str) -> argparse.ArgumentParser:
    """A parser that shows the module's docstring as it stands."""
    return argparse.ArgumentParser(
        prog=f"python -m {module}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def path(text: str) -> str:
    """The type of an argument that names a place; see `paths.resolve`."""
    from var_jax.paths import resolve

    try:
        return str(resolve(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def run(
    parser: argparse.ArgumentParser,
    main: Callable[[argparse.Namespace], None],
    argv: Sequence[str] | None = None,
) -> None:
    """Parses the command line and runs `main`; expected errors end with one line and status 2."""
    args = parser.parse_args(argv)
    # A TPU may be busy with a run, and only one process can hold it.
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    from var_jax.checkpoint.files import CheckpointError

    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)  # Orbax warns about what these commands do not need.
    try:
        main(args)
    except (ValueError, KeyError, OSError, CheckpointError) as error:
        message = error.args[0] if isinstance(error, KeyError) and error.args else error
        print(f"Error: {message}", file=sys.stderr)
        sys.exit(2)
    finally:
        logging.set_verbosity(verbosity)  # The caller may be a notebook or a test.
