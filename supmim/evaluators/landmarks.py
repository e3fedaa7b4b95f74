"""Landmark retrieval with given positives and junk: the revisited Oxford and Paris (arXiv
1803.11285) and Google Landmarks v2 (arXiv 2004.01804).

Shapes: M gallery images.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from supmim.config import Config
from supmim.evaluators.lib import ranking
from supmim.evaluators.lib import retrieval_metrics as metrics
from supmim.evaluators.lib.predictions import Predictions

# The kinds of gallery images that are positives, and those that are junk.
SETTINGS = {
    "easy": (("easy",), ("junk", "hard")),
    "medium": (("easy", "hard"), ("junk",)),
    "hard": (("hard",), ("junk", "easy")),
}
DEPTHS = (1, 5, 10)  # of the revisited sets' mP
DEPTH = 100  # Google Landmarks'


def graded_metrics(order: np.ndarray, truth: dict[str, np.ndarray]) -> Iterator[tuple[str, float]]:
    """Yield (name, value) for a query with easy and hard positives; order: ids [M], best first."""
    for setting, kinds in SETTINGS.items():
        positives, junk = (np.concatenate([truth[kind] for kind in some]) for some in kinds)
        relevant, count = metrics.without_junk(order, positives, junk), len(positives)
        yield f"map_{setting}", metrics.trapezoid_average_precision(relevant, count)
        for k in DEPTHS:
            yield f"mp_at_{k}_{setting}", metrics.capped_precision(relevant, count, k)


def plain_metrics(order: np.ndarray, truth: dict[str, np.ndarray]) -> Iterator[tuple[str, float]]:
    """Yield (name, value) for a query with one kind of positives; order: ids [M], best first."""
    relevant = metrics.without_junk(order, truth["positives"], truth["junk"])[None]
    count = np.array([len(truth["positives"])])
    yield "map", metrics.average_precision(relevant, count)[0]
    yield f"map_at_{DEPTH}", metrics.average_precision_at(relevant, count, DEPTH)[0]


def summarize_queries(values: dict[str, np.ndarray]) -> dict[str, float]:
    """Return the means over queries that have a value and, for each AP, the share that has none."""
    means = metrics.known({name: metrics.mean(of_each) for name, of_each in values.items()})
    for name, of_each in values.items():
        metric, _, setting = name.removeprefix("landmarks/").partition("_")
        if metric == "map" and not setting.startswith("at"):
            absent = "_".join(filter(None, ("landmarks/without_positives", setting)))
            means[absent] = float(np.isnan(of_each).mean())
    return means


class Evaluator:
    """landmarks/map_easy, _medium, _hard and mp_at_K_...; or landmarks/map and map_at_100.

    Images, and queries cut to their boxes, are cropped as in any evaluation. A query without
    positives is left out of the means and counted in landmarks/without_positives...; a positive
    that cannot be read is never found, though it counts.
    """

    def __init__(self, predictions: Predictions, config: Config) -> None:
        assert predictions.landmarks is not None  # the config is checked for their file
        self.predictions, self.truth = predictions, predictions.landmarks.truth
        self.mib, self._searched = config.eval.similarity_mib, {}

    def run(self, params: Any) -> dict[str, float]:
        gallery, out = (self.predictions.of(params, name) for name in ("gallery", "queries"))
        _, bank = self.predictions.bank(params, "gallery", self.mib)
        queries = ranking.unit(out["embedding"], "the queries")
        self._searched = {"queries": len(queries), "bank": len(gallery["embedding"])}
        query_metrics = plain_metrics if "positives" in self.truth[0] else graded_metrics
        values: dict[str, list[float]] = {}
        for first, orders in bank.rankings(queries):
            for row, order in enumerate(orders, first):
                truth = self.truth[out["index"][row]]
                for name, value in query_metrics(gallery["index"][order], truth):
                    values.setdefault(f"landmarks/{name}", []).append(value)
        return summarize_queries({name: np.array(of_each) for name, of_each in values.items()})

    def protocol(self) -> dict[str, Any]:
        revisited = "positives" not in self.truth[0]
        kind = "revisited Oxford and Paris (arXiv 1803.11285)" if revisited else "positives, junk"
        return {
            "what": f"queries, cut to their boxes, in a gallery: {kind}",
            "feature": "embedding of the evaluation view, one scale, L2-normalised",
            "metric": "cosine, exact search",
            **self._searched,
        }

    def draw(self, folder: Path) -> None:
        """Draw nothing."""
