#!/usr/bin/env bash
# Trains with several processes on this machine, each on its own GPU, or all on the CPU.
#
#   launch/local.sh [--dry-run] N ARGUMENTS...      ARGUMENTS are those of `python -m vit_jax.main`, or of $MODULE
#   launch/local.sh 4 --config configs/cifar100.py
#
# Only the first process prints. Ctrl-C, SIGTERM and a lost terminal reach all: they save and stop; a second signal ends
# them at once.
# When a process fails, the rest are ended, and up to $RESTARTS times (default: 0) all are started again. The exit code is
# that of the first one that failed.
# A training's command, with any N that divides the batch, goes on from the last checkpoint when given again.
# Environment: RESTARTS, see above; PYTHON, the interpreter (default: python); MODULE, what it runs (default:
# vit_jax.main), such as vit_jax.evaluate.
set -euo pipefail

usage() {
  awk 'NR > 1 && !/^#( |$)/ { exit } NR > 1 { sub(/^# ?/, ""); print }' "$0" >&2
  exit 2
}

arguments=("$@")
dry_run=
if [[ ${1-} == --dry-run ]]; then
  dry_run=1
  shift
fi
[[ ${1-} =~ ^[1-9][0-9]*$ && $# -ge 2 ]] || usage
processes=$1
shift
command=("${PYTHON:-python}" -m "${MODULE:-vit_jax.main}" "$@")

port=$("${PYTHON:-python}" -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')
export JAX_COORDINATOR_ADDRESS=127.0.0.1:$port JAX_NUM_PROCESSES=$processes

if [[ $dry_run ]]; then
  for ((i = 0; i < processes; i++)); do
    echo "JAX_COORDINATOR_ADDRESS=$JAX_COORDINATOR_ADDRESS JAX_NUM_PROCESSES=$processes JAX_PROCESS_ID=$i" \
      "JAX_LOCAL_DEVICE_IDS=$i $(printf '%q ' "${command[@]}")"
  done
  exit
fi

logs=$(mktemp -d)
pids=()
signals=0
send() {
  for pid in "${pids[@]}"; do
    kill -s "$1" -- "-$pid" 2>/dev/null || true
  done
}
# shellcheck disable=SC2317,SC2329  # called by traps
forward() {
  signals=$((signals + 1))
  send "$([[ $signals -gt 1 ]] && echo KILL || echo "$1")"
}
early= # a signal that comes before all processes are there is sent until they end: one that just starts may miss it
trap 'early=INT' INT
trap 'early=TERM' TERM HUP # HUP: the terminal is gone

set -m # each process in its own group: the terminal's Ctrl-C comes once, from here
for ((i = 0; i < processes; i++)); do
  one=(env "JAX_PROCESS_ID=$i" "JAX_LOCAL_DEVICE_IDS=$i" "${command[@]}")
  if ((i == 0)); then
    "${one[@]}" </dev/null &
  else
    "${one[@]}" </dev/null >"$logs/$i" 2>&1 &
  fi
  pids+=($!)
done
set +m
trap 'rm -r "$logs"' EXIT # not before: a process that a signal meets before it runs its program would do it
trap 'forward INT' INT
trap 'forward TERM' TERM HUP
[[ ! $early ]] || signals=1

codes=()
first=
running=$processes
while ((running)); do
  [[ ! $early ]] || send "$early"
  sleep 0.2 || true
  for ((i = 0; i < processes; i++)); do
    if [[ ${codes[i]-} ]] || kill -0 "${pids[i]}"; then
      continue
    fi
    code=0
    wait "${pids[i]}" || code=$?
    codes[i]=$code
    running=$((running - 1))
    if ((code)) && [[ ! $first ]]; then
      first=$i
      if ((signals == 0)); then
        sleep 3 || true # the others may be about to say the same
        send KILL
      fi
    fi
  done
done 2>/dev/null # bash reports each kill

[[ $first ]] || exit 0
code=${codes[first]}
if ((code != 130 && code != 143)); then
  [[ ${codes[0]} == "$code" ]] || tail -n 20 "$logs/$first" >&2
  again=
  [[ ${MODULE:-vit_jax.main} != vit_jax.main ]] || again="; the same command goes on from the last checkpoint"
  ((code == 2)) || echo "process $first of $processes ended with exit code $code, the others were stopped$again" >&2
fi
if ((code != 2 && code != 130 && code != 143 && signals == 0 && ${RESTARTS:-0} > 0)); then
  rm -r "$logs"
  echo "starting again, $RESTARTS more times at most" >&2
  RESTARTS=$((RESTARTS - 1)) exec "$0" "${arguments[@]}"
fi
exit "$code"
