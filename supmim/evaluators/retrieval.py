"""Retrieval among images of the same classes: evaluation images in the training source and among
themselves, self excluded.

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
    """retrieval/*: by cosine of the embeddings.

    A query whose class has no other image where it is searched is left out of the means and counted
    in retrieval/without_positives, or train_without_positives. What no query has a value of is no
    result.
    """

    def __init__(self, predictions: Predictions, config: Config) -> None:
        self.predictions, self.mib = predictions, config.eval.similarity_mib
        self._said: dict[str, Any] = {}

    def run(self, params: Any) -> dict[str, float]:
        """See Evaluator protocol."""
        train, out = (self.predictions.of(params, split) for split in ("train", "eval"))
        self._said = {
            "k": sorted(
                {k for k in IN_TRAIN if k <= len(train["label"])}
                | {k for k in AMONG if k < len(out["label"])} | {MMP}
            ),
            "queries": len(out["label"]), "bank": len(train["label"]),
        }  # fmt: skip
        _, bank = self.predictions.bank(params, "train", self.mib)
        queries, among = self.predictions.bank(params, "eval", self.mib)
        _, ids = bank.nearest(queries, max(IN_TRAIN))
        relevant = train["label"][ids] == out["label"][:, None]
        positives = count(train["label"], out["label"])
        found = {
            f"retrieval/train_recall_at_{k}": metrics.mean(
                metrics.recall_at(relevant, positives, k)
            )
            for k in IN_TRAIN
            if k <= len(train["label"])
        }
        absent = {"retrieval/train_without_positives": float((positives == 0).mean())}
        return metrics.known(found | absent | self.among(among, queries, out["label"]))

    def among(self, bank: ranking.Bank, queries: np.ndarray, label: np.ndarray) -> dict[str, float]:
        """Each image among all the others, ranked to the last; a chunk of queries at a time."""
        positives = count(label, label) - 1
        values: dict[str, list[np.ndarray]] = {}
        for first, relevant in bank.relevance(queries, label):
            some = positives[first : first + len(relevant)]
            for k in AMONG:
                if k < len(label):
                    values.setdefault(f"retrieval/recall_at_{k}", []).append(
                        metrics.recall_at(relevant, some, k)
                    )
            for name, metric in WHOLE.items():
                values.setdefault(f"retrieval/{name}", []).append(metric(relevant, some))
        means = {name: metrics.mean(np.concatenate(parts)) for name, parts in values.items()}
        return means | {"retrieval/without_positives": float((positives == 0).mean())}

    def protocol(self) -> dict[str, Any]:
        """See Evaluator protocol."""
        return {
            "what": "evaluation images among themselves, self excluded; train_: in the training "
            "source; queries without another image of their class are left out",
            "feature": "embedding, L2-normalised", "metric": "cosine, exact search",
            **self._said,
        }  # fmt: skip

    def draw(self, folder: Path) -> None:
        """Nothing: the neighbours' strip shows them."""


def count(bank: np.ndarray, label: np.ndarray) -> np.ndarray:
    """How many images of the bank [M] have each query's label [Q]."""
    counts = np.bincount(bank, minlength=int(max(bank.max(), label.max())) + 1)
    return counts[label]


WHOLE = {
    "map": metrics.average_precision,
    "map_at_r": metrics.average_precision_at_r,
    f"mmp_at_{MMP}": lambda relevant, positives: metrics.modified_precision_at(
        relevant, positives, MMP
    ),
}
