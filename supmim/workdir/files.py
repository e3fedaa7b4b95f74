"""The files of a run, config.json and results.json; written atomically, without JAX."""

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from supmim import config as config_lib
from supmim.config import Config
from supmim.errors import CheckpointError, ConfigError
from supmim.storage.paths import whole
from supmim.storage.schemes import on_bucket


def read_json(path: Path) -> Any:
    """Return the content of a JSON file; ValueError if it is not JSON, or nested too deeply."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def read_object(path: Path, advice: str) -> dict[str, Any]:
    """Return the JSON object in a file; CheckpointError, which ends with `advice`, if damaged."""
    try:
        document = read_json(path)
        if not isinstance(document, dict):
            raise ValueError("it is not a JSON object")
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged ({error}): {advice}") from error
    return document


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a file that is written line by line, without what a kill cut short."""
    rows = []
    for line in path.read_bytes().splitlines() if path.exists() else []:
        with contextlib.suppress(ValueError, RecursionError):
            rows.append(json.loads(line))
    return [row for row in rows if isinstance(row, dict)]


def write_json(path: Path, document: Any) -> None:
    """Write a JSON file atomically."""
    write_text(path, json_text(document))


def json_text(document: Any) -> str:
    return json.dumps(document, indent=1) + "\n"


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically; bytes of names that are not UTF-8 become escapes."""
    with whole(path) as part:
        part.write_text(text, encoding="utf-8", errors="backslashreplace")


def make_folder(folder: Path, flag: str) -> None:
    """Create the folder that a flag names; ConfigError if it cannot be written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        why = "" if on_bucket(folder) or os.access(folder, os.W_OK) else "permission denied"
    except OSError as error:
        why = error.strerror
    if why:
        raise ConfigError(f"cannot write to {folder}: {why}; choose another {flag}")


def read_config(workdir: Path) -> Config:
    """Return the frozen config of a workdir; ConfigError if it holds no run."""
    path = workdir / "config.json"
    if not path.is_file():
        raise ConfigError(
            f"{workdir} holds no run (it has no config.json); start one with --config=FILE.py"
        )
    return config_lib.from_json(path.read_text(encoding="utf-8", errors="replace"), str(path))


def holds_run(workdir: Path) -> bool:
    """Return whether the workdir has metrics or checkpoints, which another config would spoil."""
    metrics, checkpoints = workdir / "metrics.jsonl", workdir / "checkpoints"
    logged = metrics.is_file() and metrics.stat().st_size > 0
    return logged or (checkpoints.is_dir() and any(checkpoints.iterdir()))


def check_config(workdir: Path, config: Config) -> None:
    """Raise ConfigError, which names the options, if the workdir holds a run of another config."""
    if lines := differences(workdir, config):
        raise ConfigError(
            f"{workdir} holds a run of another config:\n  " + "\n  ".join(lines) + "\n"
            "Choose another --workdir, with --config.init.model to begin with its encoder, or "
            "leave out --config and these options to continue that run"
        )


def differences(workdir: Path, config: Config) -> list[str]:
    """Return a line for each option by which a run in the workdir, if any, is another."""
    if not holds_run(workdir):
        return []
    stored = read_config(workdir)
    lines = config_lib.resume_differences(stored, config)
    return lines + (config_lib.result_differences(stored, config) if read_results(workdir) else [])


def begin_run(workdir: Path, config: Config, origin: dict[str, Any]) -> None:
    """Freeze the config in the workdir and mark its run as not finished.

    origin: where the encoder of a new run comes from, for init.json; if empty, init.json stays.
    """
    write_text(workdir / "config.json", config_lib.to_json(config))
    if origin:
        write_json(workdir / "init.json", origin)
    (workdir / "results.json").unlink(missing_ok=True)


RESULTS = "results.json"
NOTES = ("checkpoint", "data", "init", "model", "protocols")  # keys of results that are not numbers


def read_results(workdir: Path, file: str = RESULTS) -> dict[str, float]:
    """Return the numbers of a finished run; empty if it is not finished."""
    return {name: x for name, x in _read_results(workdir / file).items() if name not in NOTES}


def read_notes(workdir: Path, file: str = RESULTS) -> dict[str, Any]:
    """Return the NOTES of the results that say what was evaluated."""
    return {name: x for name, x in _read_results(workdir / file).items() if name in NOTES}


def read_origin(workdir: Path) -> dict[str, Any]:
    """Return where the encoder came from, as `init`; empty for a new encoder."""
    origin = workdir / "init.json"
    advice = "it only says where the encoder came from; delete it to go on"
    return {"init": read_object(origin, advice)} if origin.is_file() else {}


def _read_results(path: Path) -> dict[str, Any]:
    return read_object(path, "delete it to evaluate again") if path.is_file() else {}


def write_results(
    workdir: Path, results: dict[str, float], notes: dict[str, Any], file: str = RESULTS
) -> None:
    """Write results and their notes; results.json marks the run as finished."""
    write_json(workdir / file, results | notes)
