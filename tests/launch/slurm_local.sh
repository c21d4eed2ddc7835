#!/usr/bin/env bash
# A SLURM cluster of one machine, for tests: munged, slurmctld and slurmd, with nothing written outside one folder.
#
#   tests/launch/slurm_local.sh install          Debian packages; needs root
#   tests/launch/slurm_local.sh start FOLDER     starts the cluster; prints what to put into the environment
#   tests/launch/slurm_local.sh stop FOLDER      ends it
set -euo pipefail

install_slurm() {
  if [[ $(id -u) != 0 ]] || ! command -v apt-get >/dev/null; then
    echo "needs root and apt-get" >&2
    exit 1
  fi
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq
  apt-get install -y -qq --no-install-recommends slurm-wlm munge
}

free_port() {
  python3 -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])'
}

configuration() {
  cat <<CONF
ClusterName=vit_jax_test
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
SlurmctldPort=$(free_port)
SlurmdPort=$(free_port)
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket
CredType=cred/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SchedulerType=sched/builtin
ReturnToService=2
KillWait=30
MinJobAge=300
NodeName=$(hostname -s) NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=test Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE:4
CONF
}

start() {
  mkdir -p "$folder/state" "$folder/spool"
  chmod 755 "$folder"
  dd if=/dev/urandom of="$folder/munge.key" bs=128 count=1 status=none
  chmod 400 "$folder/munge.key"
  munged --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" --pid-file="$folder/munged.pid" \
    --log-file="$folder/munged.log" --seed-file="$folder/munged.seed"
  configuration >"$folder/slurm.conf"
  export SLURM_CONF=$folder/slurm.conf
  slurmctld -c
  slurmd
  for _ in {1..60}; do
    if sinfo --noheader --format=%T 2>/dev/null | grep -q idle; then
      echo "SLURM_CONF=$SLURM_CONF"
      return
    fi
    sleep 0.5
  done
  tail -n 20 "$folder"/slurm*.log >&2
  stop
  exit 1
}

stop() {
  for name in slurmd slurmctld munged; do
    if [[ -f $folder/$name.pid ]]; then
      kill "$(cat "$folder/$name.pid")" || true
    fi
  done
}

folder=${2-}
case ${1-}:$folder in
  install:) install_slurm ;;
  start:?*) start ;;
  stop:?*) stop ;;
  *) awk 'NR > 1 && !/^#( |$)/ { exit } NR > 1 { sub(/^# ?/, ""); print }' "$0" >&2 && exit 2 ;;
esac
