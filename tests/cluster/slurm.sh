#!/usr/bin/env bash
# A real SLURM of one machine, as two nodes, to try out and to test submission: tests/cluster/slurm.sh start|stop|status|env
#
# Everything it writes lies in one folder (QUANTFL_SLURM, by default /tmp/quantfl-slurm-USER); /etc stays as it is.
# `source` the file `env` in that folder to reach it. Where a SLURM answers already, that one is used and nothing is
# started. Exit status 77: it cannot run here, the reason is on stderr.
set -euo pipefail

folder=${QUANTFL_SLURM:-/tmp/quantfl-slurm-$(id -un)}
export PATH=$PATH:/usr/sbin:/sbin DEBIAN_FRONTEND=noninteractive

cannot() {
  echo "cannot start SLURM here: $*" >&2
  exit 77
}

answers() { # a controller with at least one node that takes jobs
  timeout 10 sinfo --noheader --responding --states=idle,mixed,allocated --format=%N 2>/dev/null | grep -q .
}

use_ours() {
  # shellcheck source=/dev/null
  if [ -f "$folder/env" ]; then . "$folder/env"; fi
}

missing() { # the commands that are not installed
  local each
  for each in munged slurmctld slurmd sbatch scontrol; do
    command -v "$each" >/dev/null || printf '%s ' "$each"
  done
}

install_packages() {
  local told
  [ -n "$(missing)" ] || return 0
  command -v apt-get >/dev/null || cannot "not installed: $(missing)(and no apt-get to install slurm-wlm and munge with)"
  [ "$(id -u)" = 0 ] || cannot "not installed: $(missing)(apt-get install slurm-wlm munge needs root)"
  echo "installing slurm-wlm and munge"
  told=$({ timeout 120 apt-get update && timeout 300 apt-get install -y --no-install-recommends slurm-wlm munge; } \
    2>&1 </dev/null) || cannot "apt-get install slurm-wlm munge failed: ${told##*$'\n'}"
  [ -z "$(missing)" ] || cannot "slurm-wlm and munge are installed, but not: $(missing)"
}

configure() {
  local name user cpus memory
  local -a ports
  name=$(hostname -s) user=$(id -un)
  cpus=$(slurmd -C | sed -n 's/.* CPUs=\([0-9]*\).*/\1/p')
  memory=$(slurmd -C | sed -n 's/.* RealMemory=\([0-9]*\).*/\1/p')
  read -ra ports < <(python3 -c 'import socket
each = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
print(*(one.getsockname()[1] for one in each))')
  mkdir -p "$folder/state"
  (umask 077 && head -c 1024 /dev/urandom >"$folder/munge.key")
  cat >"$folder/slurm.conf" <<CONF
ClusterName=quantfl
SlurmctldHost=$name(127.0.0.1)
SlurmctldPort=${ports[0]}
SlurmUser=$user
SlurmdUser=$user
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket,cred_expire=10
CredType=cred/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool-%n
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd-%n.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
ReturnToService=2
EnforcePartLimits=ALL
SchedulerParameters=sched_interval=5,bf_interval=5
KillWait=10
SlurmdParameters=config_overrides
NodeName=one NodeHostName=$name NodeAddr=127.0.0.1 Port=${ports[1]} CPUs=$cpus RealMemory=$((memory * 9 / 20)) State=UNKNOWN
NodeName=two NodeHostName=$name NodeAddr=127.0.0.1 Port=${ports[2]} CPUs=$cpus RealMemory=$((memory * 9 / 20)) State=UNKNOWN
PartitionName=main Nodes=one,two Default=YES MaxTime=INFINITE State=UP
CONF
  printf 'export SLURM_CONF=%q\n' "$folder/slurm.conf" >"$folder/env"
}

start() {
  use_ours
  if answers; then
    if [ -f "$folder/env" ]; then echo "already running; to use it: source $folder/env"; return; fi
    echo "a SLURM answers already: $(sinfo --version), using it; nothing was started"
    return
  fi
  [ ! -e "$folder" ] || stop
  unset SLURM_CONF
  [ ! -e "$folder" ] || cannot "$folder exists and is not one of ours; set QUANTFL_SLURM to another folder"
  install_packages
  mkdir -p "$folder" && chmod 711 "$folder"
  configure
  use_ours
  { munged --socket="$folder/munge.socket" --key-file="$folder/munge.key" --pid-file="$folder/munged.pid" \
    --seed-file="$folder/munged.seed" --log-file="$folder/munged.log" --num-threads=2 &&
    slurmctld -c && { slurmd -N one || without_cgroups; } && slurmd -N two; } >"$folder/daemons.log" 2>&1 </dev/null || failed
  for _ in {1..60}; do
    if answers; then
      echo "$(sinfo --version) runs on this machine; to use it: source $folder/env"
      return
    fi
    sleep 0.5
  done
  failed
}

without_cgroups() { # newer SLURM looks for cgroups, which a container may not have; older has no such setting
  echo "CgroupPlugin=disabled" >"$folder/cgroup.conf"
  slurmd -N one
}

failed() {
  local reason
  tail -n 15 "$folder"/*.log >&2
  reason=$(grep -h -o -m 1 'cgroup filesystem not mounted.*' "$folder/slurmd-one.log" 2>/dev/null) || true
  stop
  [ -z "$reason" ] || cannot "$reason"
  echo "error: SLURM did not start; its logs are above" >&2
  exit 1
}

stop() { # the daemons this script started, then their folder
  local daemon pid
  if [ ! -f "$folder/env" ]; then return; fi
  use_ours
  if answers; then
    timeout 10 scancel --user="$(id -un)" || true
    for _ in {1..60}; do
      [ -n "$(timeout 10 squeue --noheader)" ] || break
      sleep 0.25
    done
  fi
  for daemon in slurmd-one slurmd-two slurmctld munged; do
    pid=$(cat "$folder/$daemon.pid" 2>/dev/null) || continue
    [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = "${daemon%-*}" ] || continue
    kill "$pid"
    for _ in {1..40}; do
      [ -e "/proc/$pid" ] || break
      sleep 0.25
    done
    kill -KILL "$pid" 2>/dev/null || true
  done
  rm -rf "$folder"
  echo "stopped"
}

environment() { # for eval: what reaches the SLURM started here; nothing where another one answers
  if [ -f "$folder/env" ]; then cat "$folder/env"; fi
}

status() {
  use_ours
  answers || { echo "not running"; return 1; }
  sinfo --long --Node
  squeue --long
}

case ${1:-} in
  start | stop | status) "$1" ;;
  env) environment ;;
  *)
    echo "usage: ${0##*/} start|stop|status|env" >&2
    exit 2
    ;;
esac
