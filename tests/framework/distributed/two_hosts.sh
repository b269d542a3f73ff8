#!/usr/bin/env bash
# Two hosts: network namespaces on this machine, joined by a cable (a veth pair), one process each, started as on two real
# machines by `accelerate launch --num_machines 2`. Checks: the losses are those of one process; only the first host writes,
# with and without a shared file system; a cut cable ends both hosts with a clear error, and the run resumes once it is
# reconnected. Needs root; without it, prints why and exits with 0. About 3 minutes on 2 cores.
set -euo pipefail
cd "$(dirname "$0")/../../.."
root=$PWD python=${PYTHON:-$PWD/.venv/bin/python}

readonly TIMEOUT_S=30 # distributed.timeout of the runs whose cable is cut, 0.5 minutes
readonly GRACE_S=30   # for launchers to notice and end on a busy machine
readonly RUN_S=240    # longest time of a run before it counts as hanging; the first one compiles a part of DeepSpeed
readonly STEPS=32     # 4 epochs of 8

skip() { echo "skipped: $*"; exit 0; }
see() { printf '%4d s  %s\n' "$SECONDS" "$*"; }
fail() {
  printf '%4d s  FAILED: %s\n' "$SECONDS" "$*" >&2
  for log in "$work"/*.log; do printf '\n== %s\n' "$log"; tail -n 40 "$log"; done >&2
  exit 1
}

[[ $(id -u) == 0 ]] || skip "network namespaces need root"
for tool in ip unshare mount taskset; do command -v $tool > /dev/null || skip "there is no command $tool"; done

hosts=("sonoscribe-$$-0" "sonoscribe-$$-1")
work=$(mktemp -d)
clean() {
  for host in "${hosts[@]}"; do
    ip netns pids "$host" 2> /dev/null | xargs --no-run-if-empty kill -KILL 2> /dev/null || true
    ip netns delete "$host" 2> /dev/null || true # its end of the cable goes with it
  done
  rm -rf "$work"
}
trap clean EXIT
trap 'exit 130' INT TERM

{ ip netns add "${hosts[0]}" && ip netns add "${hosts[1]}" &&
  ip -n "${hosts[0]}" link add cable type veth peer name cable netns "${hosts[1]}" &&
  ip netns exec "${hosts[0]}" unshare --uts --mount true; } 2> "$work/why" ||
  skip "network namespaces are not permitted here ($(head -n 1 "$work/why"))"
for number in 0 1; do
  ip -n "${hosts[number]}" address add "10.9.77.$((number + 1))/24" dev cable
  ip -n "${hosts[number]}" link set lo up
  ip -n "${hosts[number]}" link set cable up
done

# Each host gets half of the cores: with all cores each, they would wait for one another.
mapfile -t cores < <("$python" -c 'import os; print(*sorted(os.sched_getaffinity(0)), sep="\n")')
half=$(((${#cores[@]} + 1) / 2))
cores_of() { local IFS=,; if (($1 == 0)); then echo "${cores[*]:0:half}"; else echo "${cores[*]: -half}"; fi; }

export ACCELERATE_USE_CPU=true OMP_NUM_THREADS=1
export GLOO_SOCKET_IFNAME=cable TP_SOCKET_IFNAME=cable # the names of these hosts cannot be resolved
keys=(train.epochs=4 train.log_every=1 evaluate.every_epochs=4 checkpoint.every_steps=2)
recipe=$root/recipes/smoke.yaml
port=29400

# start NUMBER FOLDER KEY...: a run on one host, in the background; its launcher's process is ${pids[NUMBER]}.
start() {
  local number=$1 folder=$2 read_only=
  shift 2
  # The shared folder is read-only on the second host. (`ip netns exec` has its own mount namespace.)
  if [[ $number == 1 && $folder == "$work/shared" ]]; then read_only=$folder; fi
  # shellcheck disable=SC2016 # expanded there
  taskset -c "$(cores_of "$number")" ip netns exec "${hosts[number]}" unshare --uts bash -euc '
    hostname "$1"
    if [[ -n $2 ]]; then
      mount --bind "$2" "$2"
      mount -o remount,bind,ro "$2"
      if touch "$2/mine" 2> /dev/null; then echo "$2 is not read-only"; exit 1; fi
    fi
    cd "$3"
    exec "${@:4}"' bash "host-$number" "$read_only" "$folder" \
    "$python" -m accelerate.commands.launch --multi_gpu --num_machines 2 --num_processes 2 --machine_rank "$number" \
    --main_process_ip 10.9.77.1 --main_process_port $port "$root/launch.py" "$recipe" "${keys[@]}" "$@" \
    > "$work/$(basename "$folder")-$number.log" 2>&1 &
  pids[number]=$!
}

# start_both FOLDER0 FOLDER1 KEY...
start_both() {
  port=$((port + 1)) # the previous one may still be in use
  start 0 "$1" "${@:3}"
  start 1 "$2" "${@:3}"
}

# ended NUMBER SECONDS: waits for a host's launcher to end; `code` is its exit code.
ended() {
  local deadline=$((SECONDS + $2))
  while kill -0 "${pids[$1]}" 2> /dev/null; do
    ((SECONDS < deadline)) || fail "host $1 hangs: still running after $2 s"
    sleep 0.2
  done
  code=0
  wait "${pids[$1]}" || code=$?
}

both_finish() {
  local number
  for number in 0 1; do
    ended $number $RUN_S
    ((code == 0)) || fail "host $number ended with $code"
  done
}

# same_losses RUN: every step once, with the losses of the run on one process.
same_losses() {
  "$python" - "$work/one/runs/smoke/one" "$1" $STEPS <<'PY' || fail "losses of $1"
import json, pathlib, sys

def losses(run):
    rows = map(json.loads, (pathlib.Path(run) / "metrics.jsonl").read_text().splitlines())
    return [(row["step"], row["value"]) for row in rows if row["name"] == "train/loss"]

(one, other), steps = map(losses, sys.argv[1:3]), list(range(1, int(sys.argv[3]) + 1))
assert [step for step, _ in one] == [step for step, _ in other] == steps, (one, other)
most = max(abs(a - b) for (_, a), (_, b) in zip(one, other))
assert most < 1e-4, f"they differ by up to {most}"
print(f"        {steps[-1]} losses differ by at most {most:.1e}")
PY
}

# The image caches in a folder: name and time of each, which show whether one was rebuilt.
caches() { find "$1/.cache/sonoscribe/images" -name '*.npy' -printf '%f %T@\n'; }

cut_and_reconnect() {
  local folder0=$1 folder1=$2 strategy=$3 number cut_at took log message deadline=$((SECONDS + RUN_S))
  local logs=("$work/$(basename "$folder0")-0.log" "$work/$(basename "$folder1")-1.log")
  local run=$folder0/runs/smoke/cut-$strategy
  local words=("run.name=cut-$strategy" "distributed.strategy=$strategy" distributed.timeout=0.5 resume=auto)
  start_both "$folder0" "$folder1" "${words[@]}"
  until [[ -f $run/checkpoints/step-6/manifest.json ]]; do
    ((SECONDS < deadline)) || fail "no sixth step"
    kill -0 "${pids[0]}" 2> /dev/null || fail "ended before the sixth step"
    sleep 0.05
  done
  ip -n "${hosts[1]}" link set cable down
  cut_at=$SECONDS
  for number in 0 1; do
    log=${logs[number]}
    ended $number $((cut_at + TIMEOUT_S + GRACE_S - SECONDS))
    took=$((SECONDS - cut_at))
    ((code != 0)) || fail "host $number ended with 0 although the cable was cut"
    grep --quiet "rank $number: waited for the other processes at .*cannot be reached.*resume=auto" "$log" ||
      fail "host $number does not report the lost process"
    [[ -z $(ip netns pids "${hosts[number]}") ]] || fail "processes of host $number are left"
    message=$(grep --only-matching "rank $number: waited for the other processes at [^;]*" "$log")
    see "$strategy, cable cut: host $number ends with $code after $took s: $message, ..."
  done
  [[ ! -e $run/scores.json ]] || fail "the cable was cut when the run was over"
  ip -n "${hosts[1]}" link set cable up
  start_both "$folder0" "$folder1" "${words[@]}"
  both_finish
  grep --only-matching "resumed from .*" "${logs[0]}" | sed 's/^/        /' || fail "started from the beginning"
  same_losses "$run"
  see "$strategy, cable reconnected: the run resumed, with the losses of an uninterrupted run"
}

mkdir "$work"/{one,shared,own-0,own-1}
(cd "$work/one" && "$python" "$root/launch.py" "$recipe" "${keys[@]}" run.name=one > "$work/one.log" 2>&1) ||
  fail "the run on one process"
see "one process: trained"

start_both "$work/shared" "$work/shared" run.name=ddp distributed.strategy=ddp
both_finish
same_losses "$work/shared/runs/smoke/ddp"
grep --quiet "processes 2 .*machines 2 .*strategy ddp" "$work/shared-0.log" || fail "not two machines"
[[ $(ls "$work/shared/runs/smoke") == ddp ]] || fail "more than one run folder: $(ls "$work/shared/runs/smoke")"
[[ $(caches "$work/shared" | wc -l) == 1 ]] || fail "image caches: $(caches "$work/shared")"
see "ddp, a shared file system: the losses of one process; the second host wrote nothing (for it, it is read-only)"

start_both "$work/own-0" "$work/own-1" run.name=zero2 distributed.strategy=zero2
both_finish
same_losses "$work/own-0/runs/smoke/zero2"
grep --quiet "processes 2 .*machines 2 .*strategy zero2" "$work/own-0-0.log" || fail "not ZeRO-2 on two machines"
[[ ! -e $work/own-1/runs ]] || fail "the second host has a run folder"
before=$(caches "$work/own-0"; caches "$work/own-1")
[[ $(wc -l <<< "$before") == 2 ]] || fail "not one image cache on each host: $before"
see "zero2, a file system each: the losses of one process; no run folder on the second host, an image cache on each"

cut_and_reconnect "$work/shared" "$work/shared" ddp
cut_and_reconnect "$work/own-0" "$work/own-1" zero2
[[ ! -e $work/own-1/runs ]] || fail "the second host has a run folder"
[[ $(caches "$work/own-0"; caches "$work/own-1") == "$before" ]] || fail "an image cache was built again"
see "each host built its image cache once, in three runs"
see "OK"
