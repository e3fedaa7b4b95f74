"""The classifier over the whole evaluation source: accuracy, loss, calibration, confusion.

Shapes: n images, C classes.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from supmim import losses
from supmim.config import Config
from supmim.evaluators.lib import real_labels
from supmim.evaluators.lib.predictions import Predictions
from supmim.report import confusion
from supmim.runtime import hosts

BINS = 15  # of the calibration error
MOST_DRAWN = 50  # classes up to which confusions are drawn
PROBABILITIES = {"softmax": jax.nn.softmax, "sigmoid": jax.nn.sigmoid}  # of each class loss


def top_k(logits: np.ndarray, label: np.ndarray, k: int) -> float:
    """Share of labels [n] among the k largest of their logits [n, C]; ties and NaN count against
    us.
    """
    own = np.take_along_axis(logits, label[:, None], axis=1)
    rank = (~(logits < own)).sum(axis=1) - 1
    return float(((rank < k) & ~np.isnan(own[:, 0])).mean())


def calibration_error(confidence: np.ndarray, right: np.ndarray) -> float:
    """Expected calibration error (arXiv 1706.04599, section 2): [n] in [0, 1], [n] bool.

    |accuracy - mean confidence| of each of 15 bins ((m - 1)/15, m/15], weighted by their images.
    """
    place = np.clip(np.ceil(confidence.astype(np.float64) * BINS).astype(int) - 1, 0, BINS - 1)
    gap = np.bincount(place, right.astype(np.float64) - confidence, BINS)
    return float(np.abs(gap).sum() / len(confidence))


def confusions(predicted: np.ndarray, label: np.ndarray, num_classes: int) -> np.ndarray:
    """[n], [n] -> how many images of each class (rows) are taken for which (columns): [C, C]."""
    pairs = np.bincount(label * num_classes + predicted, minlength=num_classes**2)
    return pairs.reshape(num_classes, num_classes)


def real_right(predicted: np.ndarray, real: list[list[int]]) -> list[bool]:
    """Whether the class predicted [n] is one of the labels, of images that have any.

    Their mean is the ReaL accuracy (arXiv 2006.07159).
    """
    return [p in labels for p, labels in zip(predicted.tolist(), real, strict=True) if labels]


class Evaluator:
    """classification/top1, top5, loss (the class loss, hard labels), calibration_error, real_top1.

    floor/top1 is the most frequent class.
    """

    def __init__(self, predictions: Predictions, config: Config) -> None:
        self.predictions, self.num_classes = predictions, config.classifier.num_classes
        self.loss, source = config.classifier.loss, predictions.sources["eval"]
        self.class_names, path = source.class_names, config.eval.real_labels
        self.real: list[list[int]] = []
        if path:
            self.real = hosts.together(lambda: real_labels.read(Path(path), source.source))
        self._confusions, self._said = np.zeros((0, 0)), {}

    def run(self, params: Any) -> dict[str, float]:
        """See Evaluator protocol."""
        out = self.predictions.of(params, "eval")
        logits, label = out["logits"], out["label"]
        predicted = logits.argmax(axis=1)
        self._confusions = confusions(predicted, label, self.num_classes)
        self._said = {"images": len(label)}
        confidence = np.asarray(PROBABILITIES[self.loss](logits)).max(axis=1)
        results = {
            "classification/top1": top_k(logits, label, 1),
            "classification/top5": top_k(logits, label, 5),
            "classification/loss": self.mean_loss(logits, label),
            "classification/calibration_error": calibration_error(confidence, predicted == label),
            "floor/top1": float(np.bincount(label).max() / len(label)),
        }
        if self.real:
            real = [self.real[i] for i in out["index"]]
            right = real_right(predicted, real)
            self._said["images_with_real_labels"] = len(right)
            if right:
                results["classification/real_top1"] = sum(right) / len(right)
        return results

    def mean_loss(self, logits: np.ndarray, label: np.ndarray) -> float:
        """In nats: the loss of training without its label smoothing."""
        target = losses.one_hot(jnp.asarray(label), self.num_classes, 0.0)
        return float(losses.CLASS_LOSSES[self.loss](jnp.asarray(logits), target).mean())

    def protocol(self) -> dict[str, Any]:
        """See Evaluator protocol."""
        return {
            "what": "the classifier's logits against the labels", "feature": "logits",
            "metric": f"top-1, top-5 (ties count against), {self.loss} cross-entropy in nats",
            "calibration": f"expected error, {BINS} equal bins of the largest probability",
            **self._said,
        }  # fmt: skip

    def draw(self, folder: Path) -> None:
        """confusion.png, of up to 50 classes."""
        if self.num_classes <= MOST_DRAWN:
            confusion.draw(folder / "confusion.png", self._confusions, self.class_names)
