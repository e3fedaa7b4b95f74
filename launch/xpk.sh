#!/usr/bin/env bash
# Submit a run to a GKE cluster made by xpk; the cluster restarts it after an interruption.
set -euo pipefail

usage() {
  cat >&2 <<'TEXT'
usage: launch/xpk.sh WORKLOAD CLUSTER TPU_TYPE IMAGE [xpk flag ...] \
         -- supmim-train-flag ...

  launch/xpk.sh l14 lab-v5e v5litepod-256 lab.example/supmim:1 \
    --project=lab --zone=us-west4-a --storage=data -- \
    --config=configs/imagenet_l14.py --config.data.tfds_dir=/data \
    --workdir=gs://lab-runs/l14
TEXT
  exit 2
}

[[ $# -ge 6 && $1 != -* && $2 != -* && $3 != -* && $4 != -* ]] || usage
create=(--workload="$1" --cluster="$2" --tpu-type="$3" --docker-image="$4")
create+=(--max-restarts=50 "--restart-on-exit-codes=6,7,75" --termination-grace-period-seconds=120)
shift 4
while [[ $# -gt 0 && $1 != -- ]]; do create+=("$1") && shift; done
[[ $# -ge 2 ]] || usage
shift
printf -v flags ' %q' "$@" # quoted, because the container's shell parses them again

xpk workload create "${create[@]}" --command="exec supmim train$flags"
