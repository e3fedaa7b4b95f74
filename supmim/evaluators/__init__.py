"""Evaluators: objects with `run(params) -> results`, `protocol()` and `draw(folder)`, by name."""

from pathlib import Path
from typing import Any, Protocol

from supmim.config import Config
from supmim.evaluators import (
    classification,
    fewshot,
    knn,
    landmarks,
    linear,
    logistic,
    maps,
    reconstruction,
    retrieval,
    segmentation,
    tokenizer,
)
from supmim.evaluators.lib.predictions import Predictions
from supmim.runtime import hosts


class Evaluator(Protocol):
    """Results are flat: `knn/recall_at_1`, floors under `floor/`; fractions in [0, 1]."""

    def run(self, params: Any) -> dict[str, float]:
        """Numbers of these parameters; every example of the evaluation source counts once."""

    def protocol(self) -> dict[str, Any]:
        """What the last run did, as JSON: what was compared, by which metric, k, T, how many."""

    def draw(self, folder: Path) -> None:
        """Pictures of the last run, as PNG files in `folder`."""


EVALUATORS = {
    "classification": classification.Evaluator,
    "knn": knn.Evaluator,
    "retrieval": retrieval.Evaluator,
    "fewshot": fewshot.Evaluator,
    "linear": linear.Evaluator,
    "logistic": logistic.Evaluator,
    "landmarks": landmarks.Evaluator,
    "maps": maps.Evaluator,
    "reconstruction": reconstruction.Evaluator,
    "tokenizer": tokenizer.Evaluator,
    "segmentation": segmentation.Evaluator,
}


def create(config: Config, predictions: Predictions) -> list[Evaluator]:
    """The evaluators that the config asks for."""
    names = config.evaluator_names
    return [EVALUATORS[name](predictions, config) for name in names]


def run(
    evaluators: list[Evaluator], predictions: Predictions, params: Any, folder: Path
) -> dict[str, float]:
    """All results of these parameters in one flat dict; pictures go to `folder`.

    unreadable/SPLIT counts the images that are missing from them, if any are.
    """
    results: dict[str, float] = {}
    for evaluator in evaluators:
        results |= evaluator.run(params)
    results |= predictions.unreadable()
    if hosts.is_first():
        folder.mkdir(parents=True, exist_ok=True)
        for evaluator in evaluators:
            evaluator.draw(folder)
    return results


def notes(
    evaluators: list[Evaluator], predictions: Predictions, step: int, digest: str
) -> dict[str, Any]:
    """What the results of a run are of: the checkpoint, the images and how they are seen, and each
    evaluator's protocol, by name.
    """
    names = {of: name for name, of in EVALUATORS.items()}
    protocols = {names[type(evaluator)]: evaluator.protocol() for evaluator in evaluators}
    return {
        "checkpoint": {"step": step, "digest": digest},
        "data": predictions.data(),
        "protocols": protocols,
    }
