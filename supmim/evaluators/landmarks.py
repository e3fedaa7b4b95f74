"""Retrieval of landmarks, by protocols that know positives and junk: the revisited Oxford and Paris
(arXiv 1803.11285) and Google Landmarks v2 (arXiv 2004.01804).

Shapes: R ranks, M gallery images.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from supmim.config import Config
from supmim.evaluators.lib import ranking
from supmim.evaluators.lib import retrieval_metrics as metrics
from supmim.evaluators.lib.predictions import Predictions

# Which kinds of gallery images are positives and which junk.
SETTINGS = {
    "easy": (("easy",), ("junk", "hard")),
    "medium": (("easy", "hard"), ("junk",)),
    "hard": (("hard",), ("junk", "easy")),
}
DEPTHS = (1, 5, 10)  # of the revisited sets' mP
DEPTH = 100  # Google Landmarks'


def graded(order: np.ndarray, truth: dict[str, np.ndarray]) -> Iterator[tuple[str, float]]:
    """Name and value of a query whose positives are easy or hard; order: [M] ids, best first."""
    for setting, kinds in SETTINGS.items():
        positives, junk = (np.concatenate([truth[kind] for kind in some]) for some in kinds)
        relevant, count = metrics.without_junk(order, positives, junk), len(positives)
        yield f"map_{setting}", metrics.trapezoid_average_precision(relevant, count)
        for k in DEPTHS:
            yield f"mp_at_{k}_{setting}", metrics.capped_precision(relevant, count, k)


def plain(order: np.ndarray, truth: dict[str, np.ndarray]) -> Iterator[tuple[str, float]]:
    """The same of one whose positives are alike."""
    relevant = metrics.without_junk(order, truth["positives"], truth["junk"])[None]
    count = np.array([len(truth["positives"])])
    yield "map", metrics.average_precision(relevant, count)[0]
    yield f"map_at_{DEPTH}", metrics.average_precision_at(relevant, count, DEPTH)[0]


class Evaluator:
    """landmarks/map_easy, _medium, _hard and mp_at_K_...; or landmarks/map and map_at_100.

    Images, queries cut to their boxes, are seen as evaluation sees any. A query without positives
    is left out of the means and counted in landmarks/without_positives...; a positive that cannot
    be read is never found, though it counts.
    """

    def __init__(self, predictions: Predictions, config: Config) -> None:
        self.predictions, self.mib = predictions, config.eval.similarity_mib
        self._searched: dict[str, int] = {}

    def run(self, params: Any) -> dict[str, float]:
        """See Evaluator protocol."""
        gallery, out = (self.predictions.of(params, name) for name in ("gallery", "queries"))
        _, bank = self.predictions.bank(params, "gallery", self.mib)
        queries = ranking.unit(out["embedding"], "the queries")
        self._searched = {"queries": len(queries), "bank": len(gallery["embedding"])}
        truth = self.predictions.landmarks.truth
        judge = plain if "positives" in truth[0] else graded
        values: dict[str, list[float]] = {}
        for first, orders in bank.rankings(queries):
            for row, order in enumerate(orders, first):
                for name, value in judge(gallery["index"][order], truth[out["index"][row]]):
                    values.setdefault(f"landmarks/{name}", []).append(value)
        return summary({name: np.array(of_each) for name, of_each in values.items()})

    def protocol(self) -> dict[str, Any]:
        """See Evaluator protocol."""
        revisited = "positives" not in self.predictions.landmarks.truth[0]
        kind = "revisited Oxford and Paris (arXiv 1803.11285)" if revisited else "positives, junk"
        return {
            "what": f"queries, cut to their boxes, in a gallery: {kind}",
            "feature": "embedding of the evaluation view, one scale, L2-normalised",
            "metric": "cosine, exact search", **self._searched,
        }  # fmt: skip

    def draw(self, folder: Path) -> None:
        """Nothing to draw."""


def summary(values: dict[str, np.ndarray]) -> dict[str, float]:
    """Means over the queries that have a value, and the share that has none of each AP."""
    means = metrics.known({name: metrics.mean(of_each) for name, of_each in values.items()})
    for name, of_each in values.items():
        metric, _, setting = name.removeprefix("landmarks/").partition("_")
        if metric == "map" and not setting.startswith("at"):
            absent = "_".join(filter(None, ("landmarks/without_positives", setting)))
            means[absent] = float(np.isnan(of_each).mean())
    return means
