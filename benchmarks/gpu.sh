#!/usr/bin/env bash
# Checks, times and uses var_jax on one NVIDIA GPU, beside the official PyTorch code: see
# benchmarks/gpu.py, whose options it passes on, e.g. --parts=kernels.
#   VENV     virtual environment, made if it is not there (default .venv); needs torch
#   PYTHON   interpreter that makes it (default: the newest of 3.11 to 3.13 that is there)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/environment.sh demo gpu
exec python -m benchmarks.gpu "$@"
