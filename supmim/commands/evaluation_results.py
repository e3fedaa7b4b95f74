"""The results files of `supmim evaluate`: one for each checkpoint and set of images."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from supmim.config import Config
from supmim.data import data_identity
from supmim.data.sources.base import Source
from supmim.report import again, page
from supmim.workdir import files

OF_THE_MODEL = {"classes", "tokenizer", "tokenizer.image_size"}  # no facts of the images


def fingerprint(source: Source, eval_source: Source, config: Config) -> dict[str, Any]:
    """Return what identifies the images and how they are cropped and resized."""
    found = data_identity.of(source, eval_source, config)
    images = {name: value for name, value in found.items() if name not in OF_THE_MODEL}
    return images | window_fingerprint(config)


def window_fingerprint(config: Config) -> dict[str, int]:
    """Return the sliding window of segmentation; empty for other tasks."""
    has_window = config.facts.has_masks
    return dict(zip(("window", "stride"), config.window, strict=True)) if has_window else {}


def differences(stored: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """Return a line for each fact of the images that differs, or that one side lacks."""
    return [
        f"{name}: was {stored.get(name)}, is {found.get(name)}"
        for name in sorted((stored.keys() | found.keys()) - OF_THE_MODEL)
        if stored.get(name) != found.get(name)
    ]


def file_name(workdir: Path, step: int, digest: str, source: str, other: dict[str, Any]) -> str:
    """Return the name of the results file of a checkpoint, given its step and digest.

    results.json for the last step of a finished run on its own images, results_step_STEP.json for
    other checkpoints; results_step_STEP_on_SOURCE_DIGEST.json for images with another fingerprint.
    """
    if other:
        text = json.dumps(other, sort_keys=True)
        short = re.sub(r"\W+", "-", source.rpartition("/")[2]).strip("-")[:40]
        which = f"{short}_{hashlib.sha256(text.encode()).hexdigest()[:8]}"
        return f"results_step_{step}_on_{which}.json"
    noted = files.read_notes(workdir).get(
        "checkpoint", {"digest": digest}
    )  # a run that is not finished has none
    at_end = files.read_results(workdir).get("step") == step and noted["digest"] == digest
    return files.RESULTS if at_end else f"results_step_{step}.json"


def floors(workdir: Path) -> dict[str, float]:
    """Return the floors of a finished run, which need no training, on its own images."""
    return {n: x for n, x in files.read_results(workdir).items() if n.startswith("floor/")}


def write(
    workdir: Path,
    file: str,
    results: dict[str, float],
    notes: dict[str, Any],
    read: tuple[str, ...],
) -> None:
    """Write results and their notes; keep those of other evaluators on the same checkpoint.

    read: the sources that were read, whose unreadable images were counted anew.
    """
    stored_notes = files.read_notes(workdir, file)
    if stored_notes.get("checkpoint", notes["checkpoint"]) == notes["checkpoint"]:
        replaced = (
            *(f"{name}/" for name in notes["protocols"]),
            *(f"unreadable/{split}" for split in read),
        )
        stored = files.read_results(workdir, file)
        results = {n: x for n, x in stored.items() if not n.startswith(replaced)} | results
        for name in ("data", "protocols"):
            notes = notes | {name: stored_notes.get(name, {}) | notes[name]}
    numbers = {name: value for name, value in results.items() if name != "step"}
    if file == files.RESULTS:
        config = files.read_config(workdir)
        page.write(workdir, numbers, config, notes, again.training(workdir, config, notes))
    files.write_results(workdir, {"step": notes["checkpoint"]["step"], **numbers}, notes, file)
