#!/usr/bin/env bash
# Runs the tests on a fresh machine. Arguments go to pytest.
#   VENV, PYTHON  as for quickstart.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/environment.sh demo test
ruff check .
ruff format --check .
mypy
exec python -m pytest --numprocesses "${JOBS:-2}" --dist loadfile "$@"
