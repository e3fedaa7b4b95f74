"""Evaluators: objects with `run(params) -> results`, `protocol()` and `draw(folder)`, by name."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from supmim.config import Config
from supmim.evaluators.lib.predictions import Predictions
from supmim.runtime import hosts
from supmim.runtime.progress import doing


class Evaluator(Protocol):
    """One way to evaluate parameters.

    Results are flat, such as knn/recall_at_1; floors stand under floor/. Shares are in [0, 1].
    """

    def run(self, params: Any) -> dict[str, float]:
        """Return the results of these parameters; every readable evaluation image counts once."""
        ...

    def protocol(self) -> dict[str, Any]:
        """Describe the last run as JSON: what was compared, by which metric, k, T, how many."""
        ...

    def draw(self, folder: Path) -> None:
        """Write pictures of the last run, if there are any, as PNG files into `folder`."""
        ...


Progress = Callable[[int, int, dict[str, float]], None]  # (evaluators done, in all, results)


class Suite:
    """The evaluators of a run, by name, which share predictions."""

    def __init__(self, evaluators: dict[str, Evaluator], predictions: Predictions) -> None:
        self.evaluators, self.predictions = evaluators, predictions

    def run(self, params: Any, progress: Progress | None = None) -> dict[str, float]:
        """Return all results of these parameters in one flat dict.

        unreadable/SPLIT counts the images that could not be read, if there are any. progress:
        called after each evaluator with its results.
        """
        results: dict[str, float] = {}
        for done, (name, evaluator) in enumerate(self.evaluators.items(), 1):
            with doing(name):
                found = evaluator.run(params)
            results |= found
            if progress is not None:
                progress(done, len(self.evaluators), found)
        return results | self.predictions.unreadable()

    def draw(self, folder: Path) -> None:
        """Draw pictures of the last results into `folder`, on the first process."""
        if hosts.is_first():
            folder.mkdir(parents=True, exist_ok=True)
            for name, evaluator in self.evaluators.items():
                with doing(f"drawing {name}"):
                    evaluator.draw(folder)

    def notes(self) -> dict[str, Any]:
        """Return what the last results were measured on, and the protocol of every evaluator."""
        protocols = {name: evaluator.protocol() for name, evaluator in self.evaluators.items()}
        return {"data": self.predictions.data(), "protocols": protocols}


def create(config: Config, predictions: Predictions) -> Suite:
    """Return the evaluators that the config asks for; no other module is imported."""
    found = {}
    for name in config.evaluator_names:
        module = importlib.import_module(f"supmim.evaluators.{name}")
        found[name] = module.Evaluator(predictions, config)
    return Suite(found, predictions)
