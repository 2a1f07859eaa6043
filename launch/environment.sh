# shellcheck shell=bash
# Sourced with the names of extras: makes the virtual environment $VENV if it is not there,
# installs var_jax with these extras if setup.py has changed since, and activates it.
extras="$(IFS=,; echo "$*")"
VENV="${VENV:-.venv}"
if [ ! -x "$VENV/bin/python" ]; then
  source launch/python.sh
  PYTHON="${PYTHON:-$(find_python newest || true)}"
  if [ -z "$PYTHON" ] ||
    ! "$PYTHON" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))'; then
    echo "var_jax needs Python 3.11, 3.12 or 3.13; set PYTHON to one." >&2
    exit 1
  fi
  "$PYTHON" -m venv "$VENV"
fi
# shellcheck disable=SC1091
source "$VENV/bin/activate"
stamp="$VENV/.var_jax-${extras//,/-}"
if [ ! -e "$stamp" ] || [ setup.py -nt "$stamp" ]; then
  python -m pip install --quiet --disable-pip-version-check --editable ".[$extras]"
  touch "$stamp"
fi
# On a machine without a TPU the compiler package prints pages about that; the CPU is meant.
export TPU_MIN_LOG_LEVEL="${TPU_MIN_LOG_LEVEL:-3}"
# Large pages for arrays: with small ones a training step on CPUs takes up to a fifth longer.
export GLIBC_TUNABLES="${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}"
