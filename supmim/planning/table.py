"""The table of every ImageNet preset on five pods: docs/plan.md."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

from supmim.errors import DeviceError
from supmim.planning import topology
from supmim.report import forecast
from supmim.workdir.files import write_text

IMAGES_PER_CHIP = 16
PRESETS = ("s16", "b14", "l14", "h14", "g14")
TOPOLOGIES = ("v5e:4x4", "v5e:16x16", "v5p:8x8x8", "v6e:16x16", "v5p:16x16x16")


def write(path: Path) -> None:
    """Plans each ImageNet preset on each pod, into a Markdown file.

    DeviceError where the TPU compiler is not installed, or for rows that it could not plan.
    """
    topology.load(TOPOLOGIES[0])
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    for preset in PRESETS:
        for name in TOPOLOGIES:
            rows.append(row := plan_row(preset, name))
            print(forecast.row_text(row), flush=True)
            write_text(path, forecast.markdown(rows, IMAGES_PER_CHIP))
    if failed := [f"{row['preset']} on {row['topology']}" for row in rows if "memory" not in row]:
        raise DeviceError(f"{path} lacks {', '.join(failed)}: {rows[-1]['verdict']}")


def plan_row(preset: str, name: str) -> dict[str, Any]:
    """One plan, in a process of its own: a compiler that dies takes one row with it."""
    chips = math.prod(map(int, name.partition(":")[2].split("x")))
    command = [
        f"--config=configs/imagenet_{preset}.py", f"--topology={name}",
        f"--config.batch_size={IMAGES_PER_CHIP * chips}",
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "supmim", "plan", *command, "--json"], capture_output=True, text=True
    )
    try:
        result = json.loads(done.stdout)
    except ValueError:
        told = done.stderr.strip().splitlines() or [f"ended with {done.returncode}"]
        result = {"fits": False, "verdict": told[-1], "topology": name}
    return result | {"preset": preset, "command": " ".join(command)}
