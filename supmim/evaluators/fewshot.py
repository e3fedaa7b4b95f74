"""Few-shot classification by ridge regression on frozen embeddings: big_vision's protocol.

Facts from google-research/big_vision, evaluators/fewshot_lsr.py. It stretches images to 256 x 256
and sees the central 224 x 224. Ours are seen as the config says, for that with
data.eval_view=stretch, data.eval_resize=256 and data.image_size=224; results say how it was.
Shapes: n shots in all, Q queries, D width, C classes.
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
    """Weights [D + 1, C] towards -1 and +1: [n, D], [n]. The last row is the bias's."""
    target = 2.0 * (label[:, None] == np.arange(num_classes)) - 1
    if len(embedding) < embedding.shape[1]:
        kernel = embedding @ embedding.T + L2 * np.eye(len(embedding))
        return embedding.T @ np.linalg.solve(kernel, target)
    moments = embedding.T @ embedding + L2 * np.eye(embedding.shape[1])
    return np.linalg.solve(moments, embedding.T @ target)


def whitened(shots: np.ndarray, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both by the shots' mean and deviation in each dimension, with the bias feature appended."""
    mean, std = shots.mean(axis=0), shots.std(axis=0) + 1e-5

    def move(x: np.ndarray) -> np.ndarray:
        return np.pad((x - mean) / std, ((0, 0), (0, 1)), constant_values=BIAS)

    return move(shots), move(queries)


def draw(label: np.ndarray, shots: int, seed: int) -> np.ndarray:
    """Places of so many examples of each class of [M] labels, or all of a class that has fewer.

    More shots of the same seed contain the fewer ones.
    """
    order = np.random.default_rng(seed).permutation(len(label))
    by_class = order[np.argsort(label[order], kind="stable")]
    first = np.flatnonzero(np.diff(label[by_class], prepend=-1))
    rank = np.arange(len(label)) - np.repeat(first, np.diff(first, append=len(label)))
    return by_class[rank < shots]


def scarce(of_class: np.ndarray) -> dict[str, dict[str, int]]:
    """Of images per class [C]: by shots, how many classes have fewer and are taken whole."""
    fewer = {
        str(shots): int((of_class < shots).sum()) for shots in SHOTS if shots <= of_class.max()
    }
    fewer = {shots: count for shots, count in fewer.items() if count}
    return {"classes_with_fewer": fewer} if fewer else {}


class Evaluator:
    """fewshot/SHOTS_shot: share of evaluation images that are right, the mean of three draws.

    More shots than any class has are no result; the protocol says how many classes have fewer.
    """

    def __init__(self, predictions: Predictions, config: Config) -> None:
        self.predictions, self.num_classes = predictions, config.classifier.num_classes
        self._said: dict[str, Any] = {}

    def run(self, params: Any) -> dict[str, float]:
        """See Evaluator protocol."""
        train, out = (self.predictions.embedded(params, split) for split in ("train", "eval"))
        of_class = np.bincount(train["label"], minlength=self.num_classes)
        self._said = {"drawn_from": len(train["label"]), "judged_by": len(out["label"])}
        self._said |= scarce(of_class)
        queries = out["embedding"].astype(np.float64)
        results = {}
        for shots in (n for n in SHOTS if n <= of_class.max()):
            right = []
            for seed in SEEDS:
                places = draw(train["label"], shots, seed)
                bank, seen = whitened(train["embedding"][places].astype(np.float64), queries)
                scores = seen @ ridge(bank, train["label"][places], self.num_classes)
                right.append((scores.argmax(axis=1) == out["label"]).mean())
            results[f"fewshot/{shots}_shot"] = float(np.mean(right))
        return results

    def protocol(self) -> dict[str, Any]:
        """See Evaluator protocol."""
        return {
            "what": "ridge regression on some training images of each class",
            "feature": "embedding, whitened per dimension by the shots", "metric": "top-1",
            "l2": L2, "bias": BIAS, "seeds": len(SEEDS), **self._said,
        }  # fmt: skip

    def draw(self, folder: Path) -> None:
        """Nothing to draw."""
