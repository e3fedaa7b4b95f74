"""The commands that repeat a run, or the evaluation of a published model."""

import shlex
from pathlib import Path
from typing import Any

from supmim import config as config_lib
from supmim.config import OPTIONS, Config
from supmim.storage import paths
from supmim.storage.schemes import on_bucket

SET_ANYWAY = ("eval.evaluators", "checkpoint.keep_best")  # by every evaluation


def training(workdir: Path, config: Config, notes: dict[str, Any]) -> str:
    """Return the commands that repeat the run of a workdir from its config.json alone.

    notes: those of its results.
    """
    again = workdir.parent / f"{paths.absolute(workdir).name}-again"
    new, old = (shlex.quote(str(path)) for path in (again, workdir / "config.json"))
    verb = "tokenizer train" if config.task == "tokenizer" else "train"
    lines = [*copy(workdir, old, new), f"supmim {verb} --workdir={new}"]
    if names := added(config, notes):
        lines.append(f"supmim evaluate --workdir={new} --evaluators={','.join(names)}")
    return " &&\n".join(lines)


def copy(workdir: Path, file: str, to: str) -> list[str]:
    """Return the commands that copy a file of a workdir, both quoted, into a new folder."""
    if not on_bucket(workdir):
        return [f"mkdir {to}", f"cp {file} {to}"]
    program = "gcloud storage" if str(workdir).startswith("gs:") else "aws s3"
    return [f"{program} cp {file} {to}/"]


def added(config: Config, notes: dict[str, Any]) -> list[str]:
    """Return the evaluators whose results `supmim evaluate` added to those of a run."""
    return [name for name in notes["protocols"] if name not in config.evaluator_names]


def evaluation(model: Path, out: Path, config: Config, published: Config) -> str:
    """Return the command that evaluates a published model again.

    config: that of the evaluation. published: that of the model.
    """
    names = ",".join(config.evaluator_names)
    before, asked = config_lib.flatten(published), config_lib.flatten(config)
    changed = [
        f"--config.{path}={asked[path]}"
        for path, option in OPTIONS.items()
        if option.in_evaluation and path not in SET_ANYWAY and asked[path] != before[path]
    ]
    words = [f"--model={model}", f"--out={out}", f"--evaluators={names}"]
    lines = ["supmim evaluate", *map(shlex.quote, [*words, *changed])]
    return " \\\n  ".join(lines)
