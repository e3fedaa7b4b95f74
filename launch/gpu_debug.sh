#!/usr/bin/env bash
# Try a config on this host in about 20 seconds: 2 layers, small images, checks for NaN.
set -euo pipefail

if [[ ${1-} != --config=* ]]; then
  cat >&2 <<'TEXT'
usage: launch/gpu_debug.sh --config=FILE.py [supmim-train-flag ...]

Does it run? Where does the time go? Does the mesh work, without a GPU?
  launch/gpu_debug.sh --config=configs/digits.py
  launch/gpu_debug.sh --config=configs/digits.py --profile=10:15
  launch/gpu_debug.sh --config=configs/digits.py --fake-devices=8 \
    --config.mesh.fsdp=4
TEXT
  exit 2
fi

workdir=$(mktemp -d "${TMPDIR:-/tmp}/supmim-debug.XXXXXX")
echo "workdir: $workdir"
supmim doctor
export XLA_PYTHON_CLIENT_PREALLOCATE=false # leave the rest of the GPU to other processes
exec supmim train --workdir="$workdir" --debug "$@"
