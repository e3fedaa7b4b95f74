#!/usr/bin/env bash
# Copy this tree to every worker of a TPU VM, install it there, and train on all of them.
set -euo pipefail

usage() {
  cat >&2 <<'TEXT'
usage: launch/tpu_vm.sh NAME ZONE [gcloud flag ...] -- supmim-train-flag ...

  launch/tpu_vm.sh pod-1 us-west4-a --project=lab -- \
    --config=configs/imagenet_l14.py --workdir=gs://lab-runs/l14
TEXT
  exit 2
}

[[ $# -ge 4 && $1 != -* && $2 != -* ]] || usage
name=$1
where=(--zone="$2" --worker=all)
shift 2
while [[ $# -gt 0 && $1 != -- ]]; do where+=("$1") && shift; done
[[ $# -ge 2 ]] || usage
shift
printf -v flags ' %q' "$@" # quoted, because the remote shell parses them again

cd "$(dirname "$0")/.."
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
git ls-files -z --cached --others --exclude-standard |
  tar --null -T - -czf "$folder/supmim.tar.gz"

gcloud compute tpus tpu-vm scp "$folder/supmim.tar.gz" "$name:" "${where[@]}"
gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --command="set -e
mkdir -p supmim && cd supmim && tar -xzf ../supmim.tar.gz
python3 -m pip install --quiet --user uv
test -d .venv || python3 -m uv venv --quiet --python=3.12
python3 -m uv pip install --quiet -e '.[tpu,gcs]'
exec .venv/bin/supmim train$flags"
