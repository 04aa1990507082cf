#!/usr/bin/env bash
# Runs one command on every host of a Cloud TPU pod slice, from your own machine.
#
#   launch/tpu_pod.sh --config configs/6dof.py --config.data.source=gs://BUCKET/shards
#
# What follows goes to escherjax.train. The slice exists, and each host has a clone of this
# repository in ~/escherjax with `pip install -e '.[tpu]'`. Run it again to continue: the newest
# checkpoint is found in WORKDIR, a folder that every host reaches: a shared disk or a mounted bucket.
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
if ! command -v gcloud >/dev/null; then
  echo "error: gcloud is not installed; see https://cloud.google.com/sdk/docs/install" >&2
  exit 2
fi

# Quoted for the shell on each host.
printf -v arguments ' %q' "$@"
printf -v workdir '%q' "$WORKDIR"
remote="cd ~/escherjax"
if [[ -n "$EXPECTED_DEVICES" ]]; then
  remote+=" && export ESCHERJAX_EXPECTED_DEVICES=${EXPECTED_DEVICES}"
fi
remote+=" && python3 -m escherjax.train --workdir ${workdir}${arguments}"

exec gcloud compute tpus tpu-vm ssh "$TPU_NAME" --zone "$ZONE" --worker=all --command "$remote"
