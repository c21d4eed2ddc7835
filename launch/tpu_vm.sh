#!/usr/bin/env bash
# Trains on a Cloud TPU, by gcloud: one TPU VM (v3-8) or a slice of many (v3-32, v4-64, v5litepod-16, v6e-32 ...).
#
#   launch/tpu_vm.sh [--dry-run] create          makes the TPU
#   launch/tpu_vm.sh [--dry-run] setup           copies this working tree to all workers and installs it there
#   launch/tpu_vm.sh [--dry-run] start ARGS...   `python -m vit_jax.main ARGS...` on all workers; it outlives the ssh;
#                                                an error while a run is going on
#   launch/tpu_vm.sh [--dry-run] logs            follows what the first worker prints
#   launch/tpu_vm.sh [--dry-run] status          the state of the TPU, and of the run on each worker
#   launch/tpu_vm.sh [--dry-run] stop            saves and stops the run; `start` with the same ARGS goes on from there
#   launch/tpu_vm.sh [--dry-run] delete          deletes the TPU, with its disks
#   launch/tpu_vm.sh [--dry-run] watch ARGS...   create, setup, start, and again whenever the TPU was preempted, until
#                                                the run has ended; its exit code. A TPU that is there is used, and a
#                                                run that is going on there is followed instead of a new one
#
# --dry-run prints the gcloud commands. Environment:
#   TPU_NAME, TPU_ZONE   e.g. vit, europe-west4-a
#   TPU_TYPE             for create and watch: v3-8, v3-32, v4-8, v5litepod-16, v5p-8, v6e-8 ...
#   TPU_IMAGE            runtime version (default: the type's)
#   TPU_SPOT=1           a spot TPU: cheaper, may be preempted at any time
#   BUCKET               a bucket, which all workers mount as runs/: needed by several workers, because they write one run
#                        together, and by spot TPUs, because their disks are lost with them (default: runs/ is local)
#   POLL_SECONDS         how often `watch` looks (default: 60)
set -euo pipefail

RESTARTS=3 # of a run that dies on one and the same TPU, by `watch`

usage() {
  awk 'NR > 1 && !/^#( |$)/ { exit } NR > 1 { sub(/^# ?/, ""); print }' "$0" >&2
  exit 2
}

need() { # variable, what it is
  if [[ -z ${!1-} ]]; then
    echo "error: $1 is not set; give $2" >&2
    exit 2
  fi
}

need_shared_folder() { # where this machine alone would see or keep the run; all types put up to 8 on one machine
  if [[ ${TPU_SPOT-} ]]; then
    need BUCKET "a bucket for the run: the disks of a spot TPU are lost with it"
  elif [[ ${TPU_TYPE-} =~ -([0-9]+)$ ]] && ((BASH_REMATCH[1] > 8)); then
    need BUCKET "a bucket for the run: the workers of a $TPU_TYPE write it together"
  fi
}

tpu() { # verb, arguments
  local command=(gcloud compute tpus tpu-vm "$1" --zone="$TPU_ZONE" "${@:2}")
  if [[ $dry_run ]]; then
    printf '%q ' "${command[@]}"
    echo
  else
    "${command[@]}"
  fi
}

on_workers() { # which, command
  tpu ssh "$TPU_NAME" --worker="$1" --command="$2"
}

image() {
  case $TPU_TYPE in
    v2-* | v3-* | v4-*) echo tpu-ubuntu2204-base ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    *)
      echo "error: no image is known for TPU_TYPE=$TPU_TYPE; set TPU_IMAGE to its runtime version" >&2
      exit 2
      ;;
  esac
}

create() {
  tpu create "$TPU_NAME" --accelerator-type="$TPU_TYPE" --version="$version" ${TPU_SPOT:+--spot}
}

setup() {
  need_shared_folder
  folder=${TMPDIR:-/tmp}/...
  if [[ ! $dry_run ]]; then
    folder=$(mktemp -d)
    trap 'rm -r "$folder"' EXIT
    tar --create --gzip --file="$folder/vit_jax.tar.gz" --directory="$(dirname "$0")/.." \
      --exclude=./.git --exclude=./.venv --exclude=./runs --exclude='./.*_cache' .
  fi
  tpu scp "$folder/vit_jax.tar.gz" "$TPU_NAME:" --worker=all
  on_workers all "mkdir -p vit_jax && tar --extract --gzip --file=vit_jax.tar.gz --directory=vit_jax &&
    cd vit_jax && BUCKET=${BUCKET-} launch/tpu_vm.sh _install"
}

start() {
  (($#)) || usage
  on_workers all "cd vit_jax && launch/tpu_vm.sh _idle" # all, before any starts
  on_workers all "cd vit_jax && rm -f exit_code pid stopped &&
    (nohup launch/tpu_vm.sh _run $(printf '%q ' "$@")>>train.log 2>&1 </dev/null &)"
}

logs() { on_workers 0 "tail -n 50 -F vit_jax/train.log"; }

report() { on_workers "$1" "cd vit_jax && launch/tpu_vm.sh _report || echo new"; } # new: without `setup`

status() {
  tpu describe "$TPU_NAME" --format='value(state)'
  report all
}

stop() { on_workers all "cd vit_jax && touch stopped && kill -s TERM \$(cat pid)"; }

delete() { tpu delete "$TPU_NAME" --quiet; }

this() { bash "$0" ${dry_run:+--dry-run} "$@"; } # a process of its own: `set -e` is off in a function that an `if` calls

watch() {
  (($#)) || usage
  need_shared_folder
  if [[ $dry_run ]]; then
    this create
    this setup
    this start "$@"
    return
  fi
  local state report restarts=0 begun= # begun: by this watch, or found running; no earlier run counts
  while true; do
    state=$(tpu describe "$TPU_NAME" --format='value(state)' 2>/dev/null || true)
    report=
    case $state in
      READY)
        report=$(report 0 || true)
        echo "$(date +%T) $state, run: $report"
        ;;
      "" | PREEMPTED | TERMINATED | STOPPED)
        echo "$(date +%T) ${state:-no TPU}: creating it"
        restarts=0
        [[ -z $state ]] || this delete || true
        if this create; then
          report=new
        else
          echo "$(date +%T) that failed; trying again"
        fi
        ;;
      *) echo "$(date +%T) $state" ;;
    esac
    if [[ $report == running ]]; then
      begun=1
    elif [[ $begun && $report == "ended "* ]]; then
      exit "${report#ended }"
    elif [[ $report ]]; then
      [[ ! $begun || $report != lost* ]] || restarts=$((restarts + 1))
      if ((restarts > RESTARTS)); then
        echo "error: the run died $restarts times on this TPU ($report); see: $0 logs" >&2
        exit 1
      fi
      if this setup && this start "$@"; then
        begun=1
      else
        echo "$(date +%T) that failed; trying again"
      fi
    fi
    sleep "${POLL_SECONDS:-60}"
  done
}

# What follows runs on the workers, in the copied tree.

_install() { # the images bring an old Python, so uv brings its own
  command -v ~/.local/bin/uv >/dev/null || curl -LsSf https://astral.sh/uv/install.sh | sh
  [[ -d .venv ]] || ~/.local/bin/uv venv --quiet --python 3.11 .venv
  ~/.local/bin/uv pip install --quiet --python .venv/bin/python --constraint constraints.txt --editable ".[tpu]"
  mkdir -p runs
  if [[ ${BUCKET-} ]] && ! mountpoint --quiet runs; then
    command -v gcsfuse >/dev/null || _install_gcsfuse
    gcsfuse --implicit-dirs --rename-dir-limit=100000 "$BUCKET" runs # Orbax completes a checkpoint by renaming it
  fi
}

_install_gcsfuse() {
  local host=https://packages.cloud.google.com/apt
  curl -fsS "$host/doc/apt-key.gpg" | sudo tee /etc/apt/trusted.gpg.d/gcsfuse.asc >/dev/null
  echo "deb $host gcsfuse-$(lsb_release -cs) main" | sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
  sudo apt-get update -qq && sudo apt-get install -y -qq gcsfuse
}

_run() {
  local code=0
  .venv/bin/python -m vit_jax.main "$@" &
  echo $! >pid
  wait $! || code=$?
  echo "$code" >exit_code
}

_report() { # `ended CODE`, `running`, `lost ...` by a signal that nobody sent by `stop`, or `new`
  local code
  if [[ -f exit_code ]]; then
    code=$(cat exit_code)
    if ((code > 130)) && [[ ! -f stopped ]]; then
      echo "lost (exit code $code)"
    else
      echo "ended $code"
    fi
  elif [[ ! -f pid ]]; then
    echo new
  elif kill -0 "$(cat pid)" 2>/dev/null; then
    echo running
  else
    echo "lost (the machine was restarted)"
  fi
}

_idle() {
  [[ $(_report) == running ]] || return 0
  echo "error: a run is going on; end it first by \`stop\`, or follow it by \`logs\` or \`watch\`" >&2
  exit 2
}

dry_run=
if [[ ${1-} == --dry-run ]]; then
  dry_run=1
  shift
fi
case ${1-} in
  create | setup | start | logs | status | stop | delete | watch)
    need TPU_NAME "the TPU's name"
    need TPU_ZONE "its zone, e.g. europe-west4-a"
    [[ $1 != create && $1 != watch ]] || need TPU_TYPE "the accelerator type, e.g. v3-8"
    if [[ ${TPU_TYPE-} ]]; then
      version=${TPU_IMAGE:-$(image)}
    fi
    if [[ ! $dry_run ]] && ! command -v gcloud >/dev/null; then
      echo "error: gcloud is not on the PATH; install the Google Cloud CLI" >&2
      exit 2
    fi
    ;;
  _install | _run | _report | _idle) ;;
  *) usage ;;
esac
"$@"
