"""Few-shot classification by ridge regression on frozen embeddings: big_vision's protocol.

Facts from google-research/big_vision, evaluators/fewshot_lsr.py, which stretches images to
256 x 256 and crops the central 224 x 224. Here the config says how images are cropped; set
data.eval_view=stretch, data.eval_resize=256 and data.image_size=224 for the same crop.
Shapes: n shots in all, Q queries, D width, F = D + 1 features with the bias, C classes, M labels.
"""

from pathlib import Path
from typing import Any

import numpy as np

from supmim.config import Config
from supmim.evaluators.lib.predictions import Predictions

SHOTS = (1, 5, 10, 25)
SEEDS = (0, 1, 2)
L2 = 2.0**10
BIAS = 100.0


def ridge(embedding: np.ndarray, label: np.ndarray, num_classes: int) -> np.ndarray:
    """Return weights [F, C] towards -1 and +1 from features [n, F] and labels [n]."""
    target = 2.0 * (label[:, None] == np.arange(num_classes)) - 1
    if len(embedding) < embedding.shape[1]:
        kernel = embedding @ embedding.T + L2 * np.eye(len(embedding))
        return embedding.T @ np.linalg.solve(kernel, target)
    moments = embedding.T @ embedding + L2 * np.eye(embedding.shape[1])
    return np.linalg.solve(moments, embedding.T @ target)


def whiten(shots: np.ndarray, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Standardize both by the shots' statistics and append the bias feature: [n, F], [Q, F]."""
    mean, std = shots.mean(axis=0), shots.std(axis=0) + 1e-5

    def standardize(x: np.ndarray) -> np.ndarray:
        return np.pad((x - mean) / std, ((0, 0), (0, 1)), constant_values=BIAS)

    return standardize(shots), standardize(queries)


def draw_shots(label: np.ndarray, shots: int, seed: int) -> np.ndarray:
    """Return the rows of `shots` examples of each class, or of all of a class that has fewer.

    With the same seed, a larger draw includes a smaller one. label: [M].
    """
    order = np.random.default_rng(seed).permutation(len(label))
    by_class = order[np.argsort(label[order], kind="stable")]
    first = np.flatnonzero(np.diff(label[by_class], prepend=-1))
    rank = np.arange(len(label)) - np.repeat(first, np.diff(first, append=len(label)))
    return by_class[rank < shots]


class Evaluator:
    """fewshot/N_shot: the share of evaluation images classified correctly, mean of three draws.

    There is no result for more shots than the largest class has. The protocol counts, for each
    number of shots, the classes that have fewer images and are used whole.
    """

    def __init__(self, predictions: Predictions, config: Config) -> None:
        self.predictions, self.num_classes = predictions, config.classifier.num_classes
        self._measured: dict[str, Any] = {}

    def run(self, params: Any) -> dict[str, float]:
        train, out = (self.predictions.checked(params, split) for split in ("train", "eval"))
        counts = np.bincount(train["label"], minlength=self.num_classes)
        self._measured = {"drawn_from": len(train["label"]), "judged_by": len(out["label"])}
        queries = out["embedding"].astype(np.float64)
        results, fewer = {}, {}
        for shots in (n for n in SHOTS if n <= counts.max()):
            if scarce := int((counts < shots).sum()):
                fewer[str(shots)] = scarce
            right = []
            for seed in SEEDS:
                rows = draw_shots(train["label"], shots, seed)
                bank, seen = whiten(train["embedding"][rows].astype(np.float64), queries)
                scores = seen @ ridge(bank, train["label"][rows], self.num_classes)
                right.append((scores.argmax(axis=1) == out["label"]).mean())
            results[f"fewshot/{shots}_shot"] = float(np.mean(right))
        if fewer:
            self._measured["classes_with_fewer"] = fewer
        return results

    def protocol(self) -> dict[str, Any]:
        return {
            "what": "ridge regression on some training images of each class",
            "feature": "embedding, whitened per dimension by the shots",
            "metric": "top-1",
            "l2": L2,
            "bias": BIAS,
            "seeds": len(SEEDS),
            **self._measured,
        }

    def draw(self, folder: Path) -> None:
        """Draw nothing."""
