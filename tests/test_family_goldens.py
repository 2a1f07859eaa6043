"""The family's methods against the outputs of their public code.

A case is a folder of tests/goldens/family, or of the folder that FAMILY_GOLDENS names. Its method
is the longest name of a module of tests/family that the folder's name begins with; the module's
CHECKS are functions of a `family.case.Case` by name.
"""

import importlib
import os
import pathlib

import pytest
from family.case import Case

TESTS = pathlib.Path(__file__).parent
ROOT = pathlib.Path(os.environ.get("FAMILY_GOLDENS", TESTS / "goldens" / "family"))
#: Of our own cases those that take longest and whose paths another check of the method goes too.
SLOW = (
    *("code-alone", "code-greedy", "flexvar-greedy_llamagen", "flexvar-sampled"),
    *("hmar-refined_greedy", "hmar-refined_sampled", "hmar-sampled"),
    *("flowar-samples", "infinity-samples", "m_var-sampled", "mvar-greedy_unguided"),
    *("mvar-sampled", "scalekv-selection", "xar-samples"),
)
METHODS = sorted({path.stem for path in (TESTS / "family").glob("*.py")} - {"case", "__init__"})


def checks():
    for folder in sorted(path.parent for path in ROOT.glob("*/config.json")):
        found = [name for name in METHODS if folder.name.startswith(name)]
        if not found:
            skip = pytest.mark.skip(reason="not built")
            yield pytest.param(folder, None, id=folder.name, marks=skip)
            continue
        module = importlib.import_module(f"family.{max(found, key=len)}")
        for check_name, check in module.CHECKS.items():
            name = f"{folder.name}-{check_name}"
            slow = name in SLOW and "FAMILY_GOLDENS" not in os.environ
            yield pytest.param(folder, check, id=name, marks=pytest.mark.slow if slow else ())


@pytest.mark.parametrize("folder, check", list(checks()))
def test_case(folder, check):
    check(Case(folder))
