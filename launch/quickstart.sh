#!/usr/bin/env bash
# Trains a tokenizer and a transformer on 5,000 MNIST digits, samples, scores, and writes
# report.html: minutes on two CPU cores. Options are passed on, e.g. --num_samples=200.
#   WORKDIR  where the results go (default runs/quickstart)
#   VENV     virtual environment, made if it is not there (default .venv)
#   PYTHON   interpreter that makes it (default: the newest of 3.11 to 3.13 that is there)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/environment.sh demo
exec python -m launch.quickstart "$@"
