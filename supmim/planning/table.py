"""The table in docs/plan.md: a plan of every ImageNet preset on five pods."""

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
    """Plan each ImageNet preset on each pod and write the plans to a Markdown file.

    DeviceError if the TPU compiler is not installed, or at the end if some rows have no plan.
    """
    topology.load(TOPOLOGIES[0])
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    for preset in PRESETS:
        for name in TOPOLOGIES:
            rows.append(row := _plan_row(preset, name))
            print(forecast.row_text(row), flush=True)
            write_text(path, forecast.markdown(rows, IMAGES_PER_CHIP))
    if failed := [f"{row['preset']} on {row['topology']}" for row in rows if "memory" not in row]:
        raise DeviceError(
            f"{path} has no plan of {', '.join(failed)}; the last verdict: {rows[-1]['verdict']}"
        )


def _plan_row(preset: str, name: str) -> dict[str, Any]:
    """Return one plan, made in a separate process so that a compiler crash costs one row only."""
    chips = math.prod(map(int, name.partition(":")[2].split("x")))
    batch_size = f"--config.batch_size={IMAGES_PER_CHIP * chips}"
    command = [f"--config=imagenet_{preset}", f"--topology={name}", batch_size]
    done = subprocess.run(
        [sys.executable, "-m", "supmim", "plan", *command, "--json"], capture_output=True, text=True
    )
    try:
        result = json.loads(done.stdout)
    except ValueError:
        lines = done.stderr.strip().splitlines() or [f"ended with {done.returncode}"]
        result = {"fits": False, "verdict": lines[-1], "topology": name}
    return result | {"preset": preset, "command": " ".join(command)}
