#!/usr/bin/env bash
# What a stranger does first, in a fresh environment, with the seconds of each step.
#
#   bash tools/strangers_path.sh FOLDER      # FOLDER: empty, for the environment and all results
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
folder=$(mkdir -p "$1" && cd "$1" && pwd)
cd "$folder"

step() {
  local name=$1 began=$SECONDS
  shift
  "$@" > "$name.log" 2>&1 || { echo "$name failed:"; tail -n 20 "$name.log"; exit 1; }
  printf '%-14s %4d s\n' "$name" $((SECONDS - began))
}

# Digits as picture files, for the steps that take a folder.
pictures() {
  "$python" - << 'END'
import pathlib
import sklearn.datasets
from PIL import Image

digits = sklearn.datasets.load_digits()
for number, (image, label) in enumerate(zip(digits.images[:200], digits.target)):
    file = pathlib.Path(f"pictures/{label}/{number}.png")
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((image * 15.9).astype("uint8")).save(file)
END
}

in_numpy() {
  "$python" -c "
import numpy as np
stored = np.load('pictures.npz')
assert stored['embedding'].shape[0] == len(stored['path']) == 200
print(stored['embedding'].shape)
weights = np.load('exported/model.npz')
print(len(weights.files), 'arrays')"
}

python3 -m venv environment
python=$folder/environment/bin/python supmim=$folder/environment/bin/supmim
step install "$python" -m pip install "$here"
step doctor "$supmim" doctor
step train "$supmim" train --config=digits --workdir=run
step pictures pictures
step predict "$supmim" predict --model=run --images=pictures --top=3
step embed "$supmim" embed --model=run --images=pictures --out=pictures.npz
step search "$supmim" search --model=run --embeddings=pictures.npz \
  --query=pictures/3/3.png --picture=found.png
step export "$supmim" export --model=run --to=big_vision --out=exported
step numpy in_numpy
printf '%-14s %4d s\n' all "$SECONDS"
