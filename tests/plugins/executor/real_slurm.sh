#!/usr/bin/env bash
# Starts a Slurm of one node on this machine, from Debian's packages, and tests the executor `slurm` on it: arrays, cancelling,
# requeueing, preemption with and without GraceTime, time limits, and a controller that does not answer. No accounting.
# Needs root; without it, prints why and exits with 0. It stops the daemons at the end. About 2 minutes.
set -euo pipefail
cd "$(dirname "$0")/../../.."
root=$PWD python=${PYTHON:-$PWD/.venv/bin/python}

skip() { echo "skipped: $*"; exit 0; }
see() { printf '%4d s  %s\n' "$SECONDS" "$*"; }

[[ $(id -u) == 0 ]] || skip "Slurm's daemons need root"
"$python" -c "import submitit" 2> /dev/null || skip "$python has no submitit: pip install 'sonoscribe[slurm]'"
missing() { for tool in munged slurmctld slurmd sbatch; do command -v $tool > /dev/null || return 0; done; return 1; }
if missing; then
  command -v apt-get > /dev/null || skip "there is no Slurm, and no apt-get to install it"
  install=(apt-get install --yes --no-install-recommends munge slurmctld slurmd slurm-client)
  export DEBIAN_FRONTEND=noninteractive
  said=$(mktemp)
  "${install[@]}" &> "$said" || { apt-get update && "${install[@]}"; } &> "$said" ||
    skip "the packages of Slurm cannot be installed here ($(tail -n 1 "$said"))"
  rm -f "$said"
  see "installed Slurm"
fi

work=$(mktemp -d)
chmod 755 "$work"
export SLURM_CONF=$work/slurm.conf
clean() {
  local status=$?
  trap - EXIT
  if ((status)); then for log in "$work"/*.log; do printf '\n== %s\n' "$log"; tail -n 30 "$log"; done >&2; fi
  # Daemons by their process numbers, and whatever jobs may have left by the file that they were started with.
  cat "$work"/*.pid 2> /dev/null | xargs --no-run-if-empty kill 2> /dev/null || true
  for _ in {1..50}; do
    cat "$work"/*.pid 2> /dev/null | xargs --no-run-if-empty kill -0 2> /dev/null || break
    sleep 0.2
  done
  for environment in /proc/[0-9]*/environ; do
    pid=${environment#/proc/} pid=${pid%/environ}
    if ((pid != $$)) && grep -qzxF "SLURM_CONF=$SLURM_CONF" "$environment" 2> /dev/null; then
      kill -KILL "$pid" 2> /dev/null || true
    fi
  done
  rm -rf "$work"
  exit "$status"
}
trap clean EXIT
trap 'exit 130' INT TERM

ports=($("$python" -c 'import socket
open_ones = [socket.socket() for _ in range(2)]
for one in open_ones: one.bind(("", 0))
print(*(one.getsockname()[1] for one in open_ones))'))
host=$(hostname -s)
mkdir "$work/state" "$work/spool"
printf '#!/bin/sh\nwhile [ -e %q ]; do sleep 0.1; done\n' "$work/hold" > "$work/prolog"
chmod 755 "$work/prolog"
# CPUs are what this file says they are. `cred_expire` is how long Slurm holds a requeued job back: by default 2 minutes.
cat > "$SLURM_CONF" << END
ClusterName=sonoscribe
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
SlurmctldPort=${ports[0]}
SlurmdPort=${ports[1]}
AuthType=auth/munge
AuthInfo=socket=$work/munge.socket,cred_expire=5
CredType=cred/munge
SlurmctldPidFile=$work/slurmctld.pid
SlurmdPidFile=$work/slurmd.pid
SlurmctldLogFile=$work/slurmctld.log
SlurmdLogFile=$work/slurmd.log
StateSaveLocation=$work/state
SlurmdSpoolDir=$work/spool
SlurmdParameters=config_overrides
Prolog=$work/prolog
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MailProg=/bin/true
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1,batch_sched_delay=0,sched_min_interval=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=5
MessageTimeout=5
NodeName=$host NodeAddr=127.0.0.1 CPUs=8 RealMemory=4096 State=UNKNOWN
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 PreemptMode=REQUEUE
PartitionName=grace Nodes=ALL PriorityTier=1 PreemptMode=REQUEUE GraceTime=120
PartitionName=calm Nodes=ALL PriorityTier=1 PreemptMode=OFF
PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF
END

head -c 1024 /dev/urandom > "$work/munge.key"
chmod 400 "$work/munge.key"
munged --force --key-file="$work/munge.key" --socket="$work/munge.socket" --pid-file="$work/munged.pid" \
  --log-file="$work/munged.log" --seed-file="$work/munge.seed"
slurmctld -f "$SLURM_CONF" 2> "$work/start.log"
slurmd -f "$SLURM_CONF" 2>> "$work/start.log"
for _ in {1..100}; do
  [[ $(sinfo --noheader --format=%t 2> /dev/null | sort -u) == idle ]] && break
  sleep 0.2
done
[[ $(sinfo --noheader --format=%t | sort -u) == idle ]] || { see "FAILED: the node is not up: $(sinfo 2>&1)"; exit 1; }
see "Slurm $(sinfo --version | cut -d' ' -f2) is up, with $(nproc) real cores"

export OMP_NUM_THREADS=1 ACCELERATE_USE_CPU=true
"$python" -m pytest -p no:cacheprovider --durations=20 --basetemp="$work/tests" "$root/tests/plugins/executor/real_slurm.py" "$@"
see "all seen"
