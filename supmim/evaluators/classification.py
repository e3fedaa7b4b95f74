"""Top-1 and top-5 of the classifier over the whole evaluation source."""

from pathlib import Path
from typing import Any

import numpy as np

from supmim.evaluators.predictions import Predictions


def top_k(logits: np.ndarray, label: np.ndarray, k: int) -> float:
    """Share of labels [n] among the k largest of their logits [n, C]; ties count against us."""
    own = np.take_along_axis(logits, label[:, None], axis=1)
    rank = (logits >= own).sum(axis=1) - 1
    return float((rank < k).mean())


class Evaluator:
    """classification/top1, classification/top5; floor/top1 is the most frequent class."""

    def __init__(self, predictions: Predictions, config: Any) -> None:
        self.predictions = predictions

    def run(self, params: Any) -> dict[str, float]:
        """See Evaluator protocol."""
        out = self.predictions.of(params, "eval")
        return {
            "classification/top1": top_k(out["logits"], out["label"], 1),
            "classification/top5": top_k(out["logits"], out["label"], 5),
            "floor/top1": float(np.bincount(out["label"]).max() / len(out["label"])),
        }

    def draw(self, folder: Path) -> None:
        """Nothing to draw: the curves show it."""
