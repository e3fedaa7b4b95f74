"""The files of a run: config.json, results.json. Written whole or not at all; free of JAX."""

import json
import os
from pathlib import Path
from typing import Any

from supmim import config as config_lib
from supmim.config import Config
from supmim.errors import CheckpointError, ConfigError


def write_json(path: Path, document: Any) -> None:
    """Writes a JSON file whole or not at all."""
    write_text(path, json.dumps(document, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a text file whole or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def read_config(workdir: Path) -> Config:
    """The frozen config of a workdir; ConfigError if it holds no run."""
    path = workdir / "config.json"
    if not path.is_file():
        raise ConfigError(
            f"{workdir} holds no run (no config.json); start one with --config=FILE.py"
        )
    return config_lib.from_json(path.read_text(encoding="utf-8", errors="replace"), str(path))


def holds_run(workdir: Path) -> bool:
    """Whether there is anything that another config would spoil."""
    metrics, checkpoints = workdir / "metrics.jsonl", workdir / "checkpoints"
    logged = metrics.is_file() and metrics.stat().st_size > 0
    return logged or (checkpoints.is_dir() and any(checkpoints.iterdir()))


def check_config(workdir: Path, config: Config) -> None:
    """ConfigError if the workdir holds a run of another config; names the keys that differ."""
    if not holds_run(workdir):
        return
    if lines := config_lib.resume_differences(read_config(workdir), config):
        raise ConfigError(
            f"{workdir} holds a run of another config:\n  " + "\n  ".join(lines) + "\n"
            "Choose another --workdir, or leave out --config to continue that run"
        )


def begin(workdir: Path, config: Config, origin: dict[str, Any]) -> None:
    """Freezes the config in the workdir; from here on its run is not finished.

    origin: of the encoder, in init.json; empty: as it is noted, or a new one.
    """
    write_text(workdir / "config.json", config_lib.to_json(config))
    if origin:
        write_json(workdir / "init.json", origin)
    (workdir / "results.json").unlink(missing_ok=True)


RESULTS = "results.json"
NOTES = ("checkpoint", "data", "init", "protocols")  # of results, beside the numbers


def read_results(workdir: Path, file: str = RESULTS) -> dict[str, float]:
    """The numbers that a run has reached which came to its end; empty if it has not."""
    return {name: x for name, x in _read_results(workdir / file).items() if name not in NOTES}


def read_notes(workdir: Path, file: str = RESULTS) -> dict[str, Any]:
    """What those numbers are of: NOTES, as far as they were noted."""
    return {name: x for name, x in _read_results(workdir / file).items() if name in NOTES}


def read_origin(workdir: Path) -> dict[str, Any]:
    """Where the encoder came from, as `init`; empty: it was a new one."""
    origin = workdir / "init.json"
    return {"init": json.loads(origin.read_text(encoding="utf-8"))} if origin.is_file() else {}


def _read_results(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise CheckpointError(
            f"{path} is damaged ({error}); delete it to evaluate again"
        ) from error


def write_results(
    workdir: Path, results: dict[str, float], notes: dict[str, Any], file: str = RESULTS
) -> None:
    """Notes results and what they are of; results.json marks the run as finished."""
    write_json(workdir / file, results | notes)
