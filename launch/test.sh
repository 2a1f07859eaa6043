#!/usr/bin/env bash
# Runs the tests on a fresh machine. Arguments go to pytest.
#   VENV, PYTHON  as for quickstart.sh
#   JOBS          tests at once (default: a job for each core, but 4 at most, of 3 GB each)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/environment.sh demo test
ruff check .
ruff format --check .
mypy
exec python -m pytest --numprocesses "${JOBS:-auto}" --maxprocesses "${JOBS:-4}" --dist loadfile "$@"
