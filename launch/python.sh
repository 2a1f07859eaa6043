# shellcheck shell=bash
# Sourced. `find_python newest` and `find_python oldest` print a Python of this machine, pyenv's
# included, that is among those var_jax is tested on; without one they fail.
find_python() {
  local minor candidate minors=(13 12 11)
  if [ "$1" = oldest ]; then minors=(11 12 13); fi
  for minor in "${minors[@]}"; do
    for candidate in "python3.$minor" python3 \
      "${PYENV_ROOT:-$HOME/.pyenv}/versions/3.$minor".*/bin/python; do
      # Tried, for pyenv has a command of each name that works in some folders only.
      if is_python "$minor" "$candidate"; then
        command -v "$candidate"
        return
      fi
    done
  done
  return 1
}

# Whether a command is Python 3.MINOR and can make environments.
is_python() {
  "$2" -c "import ensurepip, sys; sys.exit(sys.version_info[:2] != (3, $1))" 2>/dev/null
}
