"""Training and evaluation from Python: what the verbs `train` and `evaluate` do.

Errors are those of supmim.errors, with the messages of the verbs.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from supmim import config as config_lib
from supmim import evaluators as evaluators_lib
from supmim import train
from supmim.commands import evaluate as evaluate_lib
from supmim.config import Config, pyfile
from supmim.report.terminal import Progress
from supmim.storage import paths
from supmim.workdir.files import read_config


def train_and_evaluate(
    config: str | os.PathLike | ConfigDict | Config,
    workdir: str | os.PathLike,
    overrides: dict[str, Any] | None = None,
    progress: Progress | None = None,
) -> dict[str, float]:
    """Train to the end and return the results; continue a run that the workdir holds.

    config: a preset's name or file, such as digits:baseline or my.py, or what its get_config()
    returns. overrides: of its options, e.g. {"total_epochs": 5, "data.train": "folder:photos"}.
    progress: called every config.log_every steps with (step, steps in all, metrics), instead of a
    line on the terminal.
    """
    if isinstance(config, str | os.PathLike):
        config = pyfile.preset(Path(), os.path.expanduser(config))
    flat = config_lib.flatten(config) | config_lib.flatten(overrides or {})
    workdir = paths.path(workdir)
    return train.train_and_evaluate(config_lib.validate(flat), workdir, progress=progress)


def evaluate(
    workdir: str | os.PathLike,
    evaluators: str | Sequence[str] | None = None,
    overrides: dict[str, Any] | None = None,
    progress: evaluators_lib.Progress | None = None,
) -> dict[str, float]:
    """Evaluate the newest checkpoint of a run and return the results, also written beside it.

    evaluators: their names; None: those of the run. overrides: of options of data, eval and mesh,
    e.g. {"data.eval": "folder:photos"}. progress: called after each evaluator with (evaluators
    done, in all, its results), instead of a line on the terminal.
    """
    workdir = paths.path(workdir)
    stored = read_config(workdir)
    names = evaluators if isinstance(evaluators, str) else ",".join(evaluators or ())
    flat = config_lib.flatten(stored) | config_lib.flatten(overrides or {})
    config = config_lib.for_evaluation(stored, flat, names)
    return evaluate_lib.alone(config, workdir, progress=progress)
