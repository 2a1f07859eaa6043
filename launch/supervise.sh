#!/usr/bin/env bash
# Runs one command detached on this host and starts it again when it dies.
#
#   supervise.sh start [--restarts N] -- COMMAND ...   log in ~/var_jax_run/log
#   supervise.sh stop                                  SIGTERM, then wait until it has ended
#
# A run over many hosts ends on all of them when one dies; started again on all of them it
# resumes from the last checkpoint. Exit status 0 (done) and 2 (wrong flag or config) end it.

set -euo pipefail

folder="${VAR_JAX_RUN:-$HOME/var_jax_run}"
pause="${VAR_JAX_RESTART_PAUSE:-15}"

alive() {
  [[ -f "$folder/pid" ]] && kill -0 "$(<"$folder/pid")" 2>/dev/null
}

# Waits for the child; a signal to this shell goes on to it and ends the restarts.
supervise() {
  local restarts="$1" attempt=0 status child=0 asked=false
  shift
  trap 'asked=true; ((child == 0)) || kill -TERM "$child" 2>/dev/null || true' TERM INT
  while true; do
    echo "$(date -u +%FT%TZ) start $((attempt + 1)): $*"
    "$@" &
    child=$!
    status=0
    wait "$child" || status=$?
    # A trapped signal ends the wait early; the child is still saving.
    while kill -0 "$child" 2>/dev/null; do
      status=0
      wait "$child" || status=$?
    done
    echo "$(date -u +%FT%TZ) exit status $status"
    if $asked || ((status == 0 || status == 2 || attempt >= restarts)); then
      break
    fi
    attempt=$((attempt + 1))
    sleep "$pause"
  done
  rm -f "$folder/pid"
  return "$status"
}

case "${1:-}" in
  start)
    shift
    restarts=0
    if [[ "${1:-}" == --restarts ]]; then
      restarts="$2"
      shift 2
    fi
    [[ "${1:-}" == -- ]] && shift
    if alive; then
      echo "A run is still going on $(hostname) (process $(<"$folder/pid")); stop it first." >&2
      exit 2
    fi
    mkdir -p "$folder"
    supervise "$restarts" "$@" </dev/null >>"$folder/log" 2>&1 &
    echo "$!" >"$folder/pid"
    disown
    ;;
  stop)
    if ! alive; then
      echo "No run on $(hostname)."
      exit 0
    fi
    pid="$(<"$folder/pid")"
    kill -TERM "$pid"
    for _ in $(seq 300); do
      kill -0 "$pid" 2>/dev/null || exit 0
      sleep 1
    done
    echo "The run on $(hostname) has not ended within 300 s of SIGTERM." >&2
    exit 1
    ;;
  *)
    sed -n '2,9p' "${BASH_SOURCE[0]}" >&2
    exit 2
    ;;
esac
