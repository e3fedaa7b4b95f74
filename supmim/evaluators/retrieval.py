"""Retrieval of images of the same class, in the training source and among evaluation images.

Shapes: Q queries, M images that are searched.
"""

from pathlib import Path
from typing import Any

import numpy as np

from supmim.config import Config
from supmim.evaluators.lib import ranking
from supmim.evaluators.lib import retrieval_metrics as metrics
from supmim.evaluators.lib.predictions import Predictions

IN_TRAIN = (1, 5, 10)
AMONG = (1, 10, 100, 1000)  # Stanford Online Products'
MMP = 5  # UnED's


class Evaluator:
    """retrieval/*: by cosine of the embeddings; a query is never its own neighbour.

    A query is left out of the means if the searched images have no other image of its class; it is
    counted in retrieval/without_positives, or train_without_positives. A metric without a value for
    any query is left out.
    """

    def __init__(self, predictions: Predictions, config: Config) -> None:
        self.predictions, self.mib = predictions, config.eval.similarity_mib
        self._measured: dict[str, Any] = {}

    def run(self, params: Any) -> dict[str, float]:
        train, out = (self.predictions.of(params, split) for split in ("train", "eval"))
        depths = () if self.predictions.all_shared else IN_TRAIN
        in_train = [k for k in depths if k <= len(train["label"])]
        among = [k for k in AMONG if k < len(out["label"])]
        self._measured = {"k": sorted({*in_train, *among, MMP})}
        self._measured |= {"queries": len(out["label"]), "bank": len(train["label"])}
        _, train_bank = self.predictions.bank(params, "train", self.mib)
        queries, bank = self.predictions.bank(params, "eval", self.mib)
        _, ids = train_bank.nearest(queries, max(IN_TRAIN))
        relevant = train["label"][ids] == out["label"][:, None]
        positives = count_positives(train["label"], out["label"])
        found: dict[str, float] = {}
        for k in in_train:
            recall = metrics.recall_at(relevant, positives, k)
            found[f"retrieval/train_recall_at_{k}"] = metrics.mean(recall)
        found["retrieval/train_without_positives"] = float((positives == 0).mean())
        return metrics.known(found | search_among(bank, queries, out["label"], among))

    def protocol(self) -> dict[str, Any]:
        return {
            "what": "evaluation images among themselves, self excluded; train_: in the training "
            "source; queries without another image of their class are left out",
            "feature": "embedding, L2-normalised",
            "metric": "cosine, exact search",
            **self._measured,
        }

    def draw(self, folder: Path) -> None:
        """Draw nothing: knn draws the neighbours."""


def search_among(
    bank: ranking.Bank, queries: np.ndarray, label: np.ndarray, depths: list[int]
) -> dict[str, float]:
    """Return the metrics of each image among all the others; whole rankings, chunk by chunk."""
    positives = count_positives(label, label) - 1
    values: dict[str, list[np.ndarray]] = {}
    for first, relevant in bank.relevance(queries, label):
        some = positives[first : first + len(relevant)]
        found = {f"recall_at_{k}": metrics.recall_at(relevant, some, k) for k in depths}
        found["map"] = metrics.average_precision(relevant, some)
        found["map_at_r"] = metrics.average_precision_at_r(relevant, some)
        found[f"mmp_at_{MMP}"] = metrics.modified_precision_at(relevant, some, MMP)
        for name, of_each in found.items():
            values.setdefault(f"retrieval/{name}", []).append(of_each)
    means = {name: metrics.mean(np.concatenate(parts)) for name, parts in values.items()}
    return means | {"retrieval/without_positives": float((positives == 0).mean())}


def count_positives(bank: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Return how many labels of the bank [M] equal each query's label: [Q] -> [Q]."""
    counts = np.bincount(bank, minlength=int(max(bank.max(), label.max())) + 1)
    return counts[label]
