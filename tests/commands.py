"""Entry points as modules, for tests of their functions."""

import importlib
import sys
import types

from absl import flags


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
