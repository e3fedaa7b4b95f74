"""Logistic regression on frozen embeddings by scikit-learn's L-BFGS: for some 100,000 images.

Facts from facebookresearch/dinov2, dinov2/eval/log_regression.py: C is chosen on a tenth of the
training images, then all of them are fitted. Here every power of ten is tried, not every quarter of
one, with fewer steps than its 1,000.
Shapes: n images, D width.
"""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from supmim.config import Config
from supmim.evaluators import linear
from supmim.evaluators.lib.predictions import Predictions

C_GRID = tuple(10.0**power for power in range(-6, 6))  # inverse strength of the L2 penalty
MAX_STEPS = 200  # of L-BFGS, for each C: weak penalties would take thousands


def fit(model: LogisticRegression, embedding: np.ndarray, label: np.ndarray) -> None:
    """Fit embeddings [n, D] to labels [n]; MAX_STEPS may end it before it converges."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(embedding.astype(np.float64), label)


def choose(embedding: np.ndarray, label: np.ndarray) -> float:
    """Return the C that is best on the held-out rows, among equals the smallest: [n, D], [n]."""
    rows, held_out = linear.learnable_split(label)
    model = LogisticRegression(max_iter=MAX_STEPS, warm_start=True)  # in order of increasing C
    right = []
    for c in C_GRID:
        fit(model.set_params(C=c), embedding[rows], label[rows])
        right.append(model.score(embedding[held_out], label[held_out]))
    return C_GRID[int(np.argmax(right))]


class Evaluator:
    """logistic/top1: the share of evaluation images classified correctly."""

    def __init__(self, predictions: Predictions, config: Config) -> None:
        self.predictions = predictions
        self._measured: dict[str, Any] = {}

    def run(self, params: Any) -> dict[str, float]:
        train, out = (self.predictions.checked(params, split) for split in ("train", "eval"))
        c = choose(train["embedding"], train["label"])
        model = LogisticRegression(C=c, max_iter=MAX_STEPS)
        fit(model, train["embedding"], train["label"])
        self._measured = {"C": c, "steps": int(model.n_iter_.max())}
        self._measured |= {"trained_on": len(train["label"]), "judged_by": len(out["label"])}
        return {"logistic/top1": float(model.score(out["embedding"], out["label"]))}

    def protocol(self) -> dict[str, Any]:
        return {
            "what": "logistic regression on embeddings; C chosen on a held-out tenth",
            "feature": "embedding, as it is",
            "metric": "top-1",
            "optimizer": f"L-BFGS in float64, at most {MAX_STEPS} steps",
            **self._measured,
        }

    def draw(self, folder: Path) -> None:
        """Draw nothing."""
