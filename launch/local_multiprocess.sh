#!/usr/bin/env bash
# Trains with several processes on this machine's CPU, as several hosts would: to try a
# multi-host run, and to test it.
#
#   launch/local_multiprocess.sh N_PROCESSES DEVICES_EACH -- --config FILE --workdir DIR ...
#
# What follows -- goes to `python -m escherjax.train`. PYTHON chooses the interpreter, LOGS the
# folder for process_0.log, process_1.log, ... If one process fails, the others are ended, and its
# exit code is that of this script. SIGTERM and Ctrl-C are passed on to all.
set -euo pipefail

usage() {
    sed -n '2,9s/^# \{0,1\}//p' "$0" >&2
    exit 2
}
[[ $# -ge 3 && $1 =~ ^[1-9][0-9]*$ && $2 =~ ^[1-9][0-9]*$ && $3 == -- ]] || usage
processes=$1 each=$2
shift 3
python=${PYTHON:-python}
logs=${LOGS:-$(mktemp -d -t escherjax_logs.XXXXXX)}
mkdir -p "$logs"

port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
export ESCHERJAX_COORDINATOR=127.0.0.1:$port ESCHERJAX_NUM_PROCESSES=$processes
export JAX_PLATFORMS=cpu
export XLA_FLAGS="${XLA_FLAGS:-} --xla_force_host_platform_device_count=$each"

pids=()
trap 'kill -TERM "${pids[@]}" 2>/dev/null || true' TERM INT
trap 'kill -KILL "${pids[@]}" 2>/dev/null || true' EXIT
for ((id = 0; id < processes; id++)); do
    ESCHERJAX_PROCESS_ID=$id "$python" -m escherjax.train "$@" >"$logs/process_$id.log" 2>&1 &
    pids+=($!)
done
echo "logs: $logs/process_*.log" >&2

status=0
left=("${pids[@]}")
while ((${#left[@]})); do
    running=()
    for pid in "${left[@]}"; do
        if kill -0 "$pid" 2>/dev/null; then
            running+=("$pid")
            continue
        fi
        code=0
        wait "$pid" || code=$?
        ((code == 0 || status != 0)) || status=$code
        # 75 is a run that was asked to stop and has saved: the others are doing the same.
        if ((code != 0 && code != 75)); then
            echo "a process ended with exit code $code; ending the others" >&2
            tail -n 20 "$logs"/process_*.log >&2
            exit "$status"
        fi
    done
    left=(${running[@]+"${running[@]}"})
    sleep 0.1
done
exit "$status"
