#!/usr/bin/env bash
# Runs one command on every host of a Cloud TPU pod slice, from your own machine.
#
#   launch/tpu_pod.sh --config configs/6dof.py --config.data.source=gs://BUCKET/shards
#
# What follows goes to escherjax.train. The slice exists, and each host has a clone of this
# repository in ~/escherjax with `pip install -e '.[tpu]'`. Run it again to continue: the newest
# checkpoint is found in WORKDIR, a folder that every host reaches: a shared disk or a mounted bucket.
#
#   launch/tpu_pod.sh --stop
#
# The run in WORKDIR saves and ends, on every host. Ctrl-C here and a lost connection do not do that:
# the hosts train on without you.
set -euo pipefail

# Edit these three lines.
TPU_NAME="${TPU_NAME:-escherjax}"
ZONE="${ZONE:-us-central1-a}"
WORKDIR="${WORKDIR:-/mnt/shared/runs/6dof}"

# Devices that all hosts together must bring; the run stops at the start if some are missing.
EXPECTED_DEVICES="${EXPECTED_DEVICES:-}"

if [[ $# -eq 0 ]]; then
  echo "error: no arguments; needed those of escherjax.train, such as --config configs/6dof.py" >&2
  exit 2
fi
if [[ "$1" == --stop && $# -gt 1 ]]; then
  echo "error: --stop and $2; needed --stop alone (WORKDIR, TPU_NAME and ZONE say what to stop)" >&2
  exit 2
fi
if ! command -v gcloud >/dev/null; then
  echo "error: gcloud is not installed; see https://cloud.google.com/sdk/docs/install" >&2
  exit 2
fi

on_every_host() {
  exec gcloud compute tpus tpu-vm ssh "$TPU_NAME" --zone "$ZONE" --worker=all --command "$1"
}

if [[ "$1" == --stop ]]; then
  # Python's own command line, not that of the shell around it; other work directories go on.
  # shellcheck disable=SC2001 # bash before 5.2 cannot put back what it found
  escaped=$(sed 's/[][\\.*^$+?(){}|]/\\&/g' <<<"$WORKDIR")
  printf -v pattern '%q' "^[^ ]*python3 -m escherjax\\.train --workdir ${escaped} --"
  printf -v workdir '%q' "$WORKDIR"
  remote="if pkill -TERM -f ${pattern}; then"
  remote+=" while pgrep -f ${pattern} >/dev/null; do sleep 1; done;"
  remote+=" echo \"\$(hostname): stopped\";"
  remote+=" else echo \"\$(hostname): no run in \"${workdir}; fi"
  on_every_host "$remote"
fi

# Quoted for the shell on each host.
printf -v arguments ' %q' "$@"
printf -v workdir '%q' "$WORKDIR"
remote="cd ~/escherjax"
if [[ -n "$EXPECTED_DEVICES" ]]; then
  remote+=" && export ESCHERJAX_EXPECTED_DEVICES=${EXPECTED_DEVICES}"
fi
remote+=" && python3 -m escherjax.train --workdir ${workdir}${arguments}"

on_every_host "$remote"
