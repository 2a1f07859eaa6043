#!/usr/bin/env bash
# Installs the package, without its dependencies, into an empty folder, and looks from elsewhere
# whether it is whole: the version, the commands, the configs that they are called with, and the
# files of the page.
#   VENV  virtual environment with the dependencies (default .venv)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python="$(cd "${VENV:-.venv}/bin" && pwd)/python"
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
"$python" -m pip install --quiet --no-deps --target "$folder/site" .
cd "$folder"
PYTHONPATH="$folder/site" "$python" - <<'PYTHON'
import importlib.metadata
import pathlib

from launch.cli import find_config

import var_jax
from var_jax.demo import server

site = pathlib.Path("site").absolute()
assert site in pathlib.Path(var_jax.__file__).parents, var_jax.__file__
assert var_jax.__version__ == importlib.metadata.version("var_jax")
for name in ("mnist5k.py:smallest", "family/hmar.py"):
    assert find_config(f"configs/{name}").startswith(f"{site}/var_jax/configs/{name}")
for name in server.FILES:
    assert server.page_file(name), name
PYTHON
help="$(PYTHONPATH="$folder/site" "$python" -m launch.sample --help || true)"
grep -q -- --checkpoint <<< "$help"
