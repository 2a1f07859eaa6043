"""Entry points as modules, for tests of their functions."""

import importlib
import json
import os
import pathlib
import subprocess
import sys
import types

from absl import flags

_ROOT = pathlib.Path(__file__).parents[1]

_DRIVER = """
import importlib, json, sys
from absl import flags, logging
module = importlib.import_module(sys.argv[1])
cases = json.loads(sys.argv[2])
errors = {}
for name, argv in cases.items():
    for flag in flags.FLAGS:
        flags.FLAGS[flag].unparse()
    try:
        flags.FLAGS([sys.argv[1], "--single_host", *argv])
        module.main()
    except (ValueError, FileNotFoundError, flags.Error) as error:
        errors[name] = "; ".join(str(error).splitlines())
print("ERRORS " + json.dumps(errors))
"""


def import_command(name: str) -> types.ModuleType:
    """Imports an entry point and takes its flags out of the registry of the process.

    Two commands may define a flag of the same name; in one process only one of them could.
    """
    if name in sys.modules:
        return sys.modules[name]
    importlib.import_module("launch.cli")
    before = set(flags.FLAGS)
    module = importlib.import_module(name)
    shared = {flag.name for flag in flags.FLAGS.flags_by_module_dict().get("launch.cli", [])}
    for flag in set(flags.FLAGS) - before - shared:
        delattr(flags.FLAGS, flag)
    return module


def run_cases(module: str, cases: dict[str, list[str]]) -> dict[str, str]:
    """Runs a command with the arguments of each case and returns the errors of those that had one.

    One process runs all: starting and compiling take longer than the work.
    """
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, "-c", _DRIVER, module, json.dumps(cases)],
        cwd=_ROOT,
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1].removeprefix("ERRORS "))
