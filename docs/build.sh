#!/usr/bin/env bash
# Makes the documentation in build/docs. A warning is an error, and so is a link or a name of this
# package that leads nowhere. Nothing is executed or fetched. Arguments go to sphinx-build.
#   VENV, PYTHON  as for launch/quickstart.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/environment.sh docs
rm -rf build/docs docs/generated docs/notebooks
cp -R colabs docs/notebooks
python -m sphinx --builder html --fail-on-warning --keep-going --quiet docs build/docs "$@"
echo "Look at build/docs/index.html."
