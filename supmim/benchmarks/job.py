"""Timing of a whole training, as users start it: where its wall and CPU seconds went.

Each round trains twice, in processes and workdirs of their own: cold, with no compiled programs on
disk, and warm, with those of the cold training.
"""

import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax

from supmim import config as config_lib
from supmim.config import Config
from supmim.errors import SupmimError, counted
from supmim.runtime.progress import doing
from supmim.workdir import files
from supmim.workdir.writer import read_metrics

ROUNDS = 1
STARTS = ("cold", "warm")
MEASURES = ("wall", "cpu")
PARTS = {  # parts of a training, in their order -> their names in the table
    "start_up": "start-up: Python, imports, devices",
    "set_up": "set-up: data, initial state",
    "compile": "compile the train step",
    "data_wait": "wait for images",
    "step": "steps",
    "evaluate": "evaluate",
    "draw": "draw",
    "save": "save",
    "report": "write the report, shut down *",
}
ROW = "{name:36}{cold_wall:11.1f}{cold_cpu:11.1f}{warm_wall:11.1f}{warm_cpu:11.1f}"
HEADING = f"{'seconds':36}{'cold wall':>11}{'cold CPU':>11}{'warm wall':>11}{'warm CPU':>11}"
LEGEND = "\n* Its CPU time includes that of the reader processes in the whole training."

Seconds = dict[str, dict[str, float]]  # part -> measure -> seconds


def run(config: Config, rounds: int) -> dict[str, Any]:
    """Return what `table` prints: medians over the rounds."""
    found: dict[str, list[Seconds]] = {start: [] for start in STARTS}
    with doing("training", total=rounds * len(STARTS)) as advance:
        for _ in range(rounds):
            with tempfile.TemporaryDirectory(prefix="supmim_job_") as folder:
                for start in STARTS:
                    found[start].append(train(config, Path(folder) / start, Path(folder) / "cache"))
                    advance(1)
    # Devices are asked for last: a GPU that this process held would have no memory for the others.
    device = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    parts = [
        {
            "part": part,
            **{
                f"{start}_{measure}": statistics.median(one[part][measure] for one in found[start])
                for start in STARTS
                for measure in MEASURES
            },
        }
        for part in [*PARTS, "total"]
    ]
    return {"device": device, "rounds": rounds, "parts": parts}


def train(config: Config, workdir: Path, cache: Path) -> Seconds:
    """Train in a process of its own and return the seconds of each of PARTS and of all."""
    workdir.mkdir()
    files.write_text(workdir / "config.json", config_lib.to_json(config))
    command = [sys.executable, "-m", "supmim", "train"]
    command += [f"--workdir={workdir}", f"--compile-cache={cache}"]
    began, cpu_began = time.time(), cpu_of_children()
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    total = {"wall": time.time() - began, "cpu": cpu_of_children() - cpu_began}
    if done.returncode:
        error = SupmimError(f"the training that was timed failed:\n{done.stderr[-2000:].strip()}")
        error.exit_code = done.returncode
        raise error
    written = (workdir / "metrics.jsonl").stat().st_mtime  # by its last line, which has the times
    return seconds(read_metrics(workdir / "metrics.jsonl")[-1], written - began, total)


def cpu_of_children() -> float:
    """Return the CPU seconds of the processes that this one started and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def seconds(line: dict[str, float], until: float, total: dict[str, float]) -> Seconds:
    """Return the seconds of each of PARTS and of all.

    line: the last one of metrics.jsonl. until: wall seconds from the start of the process to it.
    """
    wall, cpu = (
        {name.partition("/")[2]: value for name, value in line.items() if name.startswith(prefix)}
        for prefix in ("wall_seconds/", "cpu_seconds/")
    )
    wall["start_up"] = until - sum(wall.values())
    wall["report"] = total["wall"] - until
    cpu["report"] = total["cpu"] - sum(cpu.values())
    parts = {part: {"wall": wall[part], "cpu": cpu[part]} for part in PARTS}
    return {**parts, "total": total}


def table(result: dict[str, Any]) -> str:
    """Return the result as text of at most 80 columns."""
    rounds = counted(result["rounds"], "round")
    lines = [f"{result['device']}, median of {rounds}", "", HEADING]
    lines += [ROW.format(name=PARTS.get(one["part"], "total"), **one) for one in result["parts"]]
    return "\n".join([*lines, LEGEND])
