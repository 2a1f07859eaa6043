#!/usr/bin/env bash
# Cloud TPU VMs for var_jax: create, set up, run on all workers, watch, stop, delete.

set -euo pipefail

usage() {
  cat <<'TEXT'
Usage: launch/tpu_vm.sh COMMAND --name NAME --zone ZONE [OPTIONS] [-- MODULE ARGUMENTS]

Commands
  create   make the slice (--type is required); with --queued wait in the queue for it
  status   state of the slice or of the queued request
  setup    copy the committed code to all workers and install it there
  run      start `python -m MODULE ARGUMENTS` on all workers, detached; rerun to resume
  logs     follow the log of one worker (--worker, default 0)
  stop     SIGTERM on all workers: the run saves a checkpoint of its current step and ends
  delete   give the slice back

Options
  --name NAME        of the slice; with --slices N its parts are NAME-0 .. NAME-(N-1)
  --zone ZONE        such as us-east5-b
  --project PROJECT  default: gcloud's own
  --type TYPE        v4-64, v5litepod-256, v5p-128, v6e-256, ...
  --version VERSION  TPU software; default by --type
  --spot             cheaper, may be taken away at any time
  --queued           a queued resource: waits until there is capacity
  --reserved         use the project's reservation (with --queued)
  --slices N         several slices in one request (with --queued)
  --worker N         whose log to follow
  --restarts N       how often a run that dies is started again on its own (default 0);
                     a wrong flag or config (exit status 2) is never retried
  --dry-run          print the commands, run none

Example
  launch/tpu_vm.sh create --name var --zone us-west4-a --type v5litepod-256 --queued --spot
  launch/tpu_vm.sh setup --name var --zone us-west4-a
  launch/tpu_vm.sh run --name var --zone us-west4-a --restarts 20 -- \
    launch.train --config configs/var_imagenet256.py:d30 --workdir gs://bucket/d30
TEXT
}

die() {
  echo "tpu_vm.sh: $1" >&2
  exit 2
}

command="${1:-}"
case "$command" in
  create | status | setup | run | logs | stop | delete) shift ;;
  -h | --help | help | "")
    usage
    exit 0
    ;;
  *) die "unknown command '$command'; see launch/tpu_vm.sh --help" ;;
esac

name="" zone="" project="" type="" version="" worker=0 slices=1 restarts=0
spot=false queued=false reserved=false dry_run=false
program=()
while (($#)); do
  case "$1" in
    --name | --zone | --project | --type | --version | --worker | --slices | --restarts)
      if (($# < 2)) || [[ "$2" == --* ]]; then die "$1 needs a value"; fi
      printf -v "${1#--}" '%s' "$2"
      shift 2
      ;;
    --spot | --queued | --reserved)
      printf -v "${1#--}" true
      shift
      ;;
    --dry-run)
      dry_run=true
      shift
      ;;
    --)
      shift
      program=("$@")
      break
      ;;
    *) die "unknown option '$1'; see launch/tpu_vm.sh --help" ;;
  esac
done
[[ -n "$name" ]] || die "--name is missing"
[[ -n "$zone" ]] || die "--zone is missing"
for number in "$worker" "$slices" "$restarts"; do
  [[ "$number" =~ ^[0-9]+$ ]] || die "'$number' is not a number"
done
((slices >= 1)) || die "--slices must be 1 or more"

where=(--zone "$zone")
[[ -z "$project" ]] || where+=(--project "$project")

# Runs a command, or prints it so that it can be pasted into a shell.
do_it() {
  if $dry_run; then
    printf '%q ' "$@"
    printf '\n'
  else
    "$@"
  fi
}

nodes() {
  local i
  if ((slices == 1)); then
    echo "$name"
  else
    for ((i = 0; i < slices; i++)); do echo "$name-$i"; done
  fi
}

# The same shell command on every worker of every slice; fails if it fails on any.
on_all_workers() {
  local node failed=0 pids=() pid
  while read -r node; do
    if $dry_run; then
      do_it gcloud compute tpus tpu-vm ssh "$node" "${where[@]}" --worker all --command "$1"
    else
      gcloud compute tpus tpu-vm ssh "$node" "${where[@]}" --worker all --command "$1" </dev/null &
      pids+=("$!")
    fi
  done < <(nodes)
  for pid in ${pids[@]+"${pids[@]}"}; do wait "$pid" || failed=1; done
  ((failed == 0)) || die "the command failed on at least one worker (see above)"
}

default_version() {
  case "$type" in
    v4-*) echo tpu-ubuntu2204-base ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    *) die "no default --version for --type '$type'; give one" ;;
  esac
}

create() {
  [[ -n "$type" ]] || die "--type is missing"
  [[ -n "$version" ]] || version="$(default_version)"
  local flags=(--accelerator-type "$type")
  if $spot; then flags+=(--spot); fi
  if $queued; then
    flags+=(--runtime-version "$version")
    if $reserved; then flags+=(--reserved); fi
    if ((slices == 1)); then
      flags+=(--node-id "$name")
    else
      flags+=(--node-count "$slices" --node-prefix "$name")
    fi
    do_it gcloud compute tpus queued-resources create "$name" "${where[@]}" "${flags[@]}"
    $dry_run || echo "Queued. launch/tpu_vm.sh status --queued ... shows when it is ACTIVE."
  else
    ((slices == 1)) || die "--slices needs --queued"
    $reserved && die "--reserved needs --queued"
    do_it gcloud compute tpus tpu-vm create "$name" "${where[@]}" --version "$version" \
      "${flags[@]}"
  fi
}

status() {
  if $queued; then
    do_it gcloud compute tpus queued-resources describe "$name" "${where[@]}" \
      --format "value(state.state)"
  else
    local node
    while read -r node; do
      do_it gcloud compute tpus tpu-vm describe "$node" "${where[@]}" --format "value(state)"
    done < <(nodes)
  fi
}

setup() {
  local root archive node
  root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
  archive="${TMPDIR:-/tmp}/var_jax.tar.gz"
  if [[ -n "$(git -C "$root" status --porcelain --untracked-files=no)" ]]; then
    echo "tpu_vm.sh: changes that are not committed stay here" >&2
  fi
  do_it git -C "$root" archive --format tar.gz --prefix var_jax/ --output "$archive" HEAD
  while read -r node; do
    do_it gcloud compute tpus tpu-vm scp "$archive" "$node:var_jax.tar.gz" "${where[@]}" \
      --worker all
  done < <(nodes)
  # The system's Python may be older than 3.11, so uv brings one.
  on_all_workers "set -e; tar xzf var_jax.tar.gz; python3 -m pip install --user -q uv; \
~/.local/bin/uv venv -q --clear --python 3.12 ~/var_jax_env; \
VIRTUAL_ENV=~/var_jax_env ~/.local/bin/uv pip install -q -e ~/var_jax'[tpu]'; \
~/var_jax_env/bin/python -c 'import jax; print(jax.__version__)'"
}

run() {
  ((${#program[@]} > 0)) || die "nothing to run: give -- MODULE ARGUMENTS"
  local line
  printf -v line '%q ' "${program[@]}"
  on_all_workers "cd ~/var_jax && bash launch/supervise.sh start --restarts $restarts -- \
~/var_jax_env/bin/python -u -m ${line% }"
}

logs() {
  local node
  node="$(nodes | head -n 1)"
  do_it gcloud compute tpus tpu-vm ssh "$node" "${where[@]}" --worker "$worker" \
    --command "tail -n 200 -F ~/var_jax_run/log"
}

stop() {
  on_all_workers "bash ~/var_jax/launch/supervise.sh stop"
}

delete() {
  if $queued || ((slices > 1)); then
    do_it gcloud compute tpus queued-resources delete "$name" "${where[@]}" --force --quiet
  else
    do_it gcloud compute tpus tpu-vm delete "$name" "${where[@]}" --quiet
  fi
}

"$command"
