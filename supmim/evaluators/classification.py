"""The classifier over the whole evaluation source: accuracy, loss, calibration, confusion.

Shapes: n images, C classes.
"""

import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np

from supmim import losses
from supmim.config import Config
from supmim.evaluators.lib import real_labels
from supmim.evaluators.lib.predictions import Predictions
from supmim.report import confusion
from supmim.runtime import hosts

BINS = 15  # of the calibration error
MOST_DRAWN = 50  # classes of a confusion matrix that is still drawn


def top_k(logits: np.ndarray, label: np.ndarray, k: int) -> float:
    """Return the share of labels [n] among the k largest logits [n, C]; ties and NaN are misses."""
    own = np.take_along_axis(logits, label[:, None], axis=1)
    rank = (~(logits < own)).sum(axis=1) - 1
    return float(((rank < k) & ~np.isnan(own[:, 0])).mean())


def calibration_error(confidence: np.ndarray, right: np.ndarray) -> float:
    """Return the expected calibration error (arXiv 1706.04599, section 2).

    That is |accuracy - mean confidence| in each of 15 bins ((m - 1)/15, m/15], weighted by the
    number of images in the bin. confidence: [n] in [0, 1]. right: bool [n].
    """
    place = np.clip(np.ceil(confidence.astype(np.float64) * BINS).astype(int) - 1, 0, BINS - 1)
    gap = np.bincount(place, right.astype(np.float64) - confidence, BINS)
    return float(np.abs(gap).sum() / len(confidence))


def confusion_matrix(predicted: np.ndarray, label: np.ndarray, num_classes: int) -> np.ndarray:
    """Return counts [C, C]: true classes are rows, predicted classes columns."""
    pairs = np.bincount(label * num_classes + predicted, minlength=num_classes**2)
    return pairs.reshape(num_classes, num_classes)


@functools.partial(jax.jit, static_argnames="kind")
def loss_and_confidence(
    logits: jax.Array, label: jax.Array, kind: str
) -> tuple[jax.Array, jax.Array]:
    """Return the mean class loss and the largest probability [n] of each image."""
    target = losses.one_hot(label, logits.shape[1], label_smoothing=0.0)
    confidence = losses.PROBABILITIES[kind](logits).max(axis=1)
    return losses.CLASS_LOSSES[kind](logits, target).mean(), confidence


class Evaluator:
    """classification/top1, top5, loss (the class loss, hard labels), calibration_error, real_top1.

    real_top1 is the ReaL accuracy (arXiv 2006.07159): the share of hits among images with labels.
    floor/top1 is the share of the most frequent class.
    """

    def __init__(self, predictions: Predictions, config: Config) -> None:
        self.predictions, self.num_classes = predictions, config.classifier.num_classes
        self.loss, source = config.classifier.loss, predictions.sources["eval"]
        self.class_names, path = source.class_names, config.eval.real_labels
        self.real: list[list[int]] = []
        if path:
            self.real = hosts.on_first(lambda: real_labels.read(Path(path), source.source))
        self._confusion, self._measured = np.zeros((0, 0)), {}

    def run(self, params: Any) -> dict[str, float]:
        out = self.predictions.of(params, "eval")
        logits, label = out["logits"], out["label"]
        predicted = logits.argmax(axis=1)
        self._confusion = confusion_matrix(predicted, label, self.num_classes)
        self._measured = {"images": len(label)}
        loss, confidence = jax.device_get(loss_and_confidence(logits, label, self.loss))
        results = {
            "classification/top1": top_k(logits, label, 1),
            "classification/top5": top_k(logits, label, 5),
            "classification/loss": float(loss),
            "classification/calibration_error": calibration_error(confidence, predicted == label),
            "floor/top1": float(np.bincount(label).max() / len(label)),
        }
        if self.real:
            real = [self.real[i] for i in out["index"]]
            pairs = zip(predicted.tolist(), real, strict=True)
            hits = [p in labels for p, labels in pairs if labels]
            self._measured["images_with_real_labels"] = len(hits)
            if hits:
                results["classification/real_top1"] = sum(hits) / len(hits)
        return results

    def protocol(self) -> dict[str, Any]:
        return {
            "what": "the classifier's logits against the labels",
            "feature": "logits",
            "metric": f"top-1, top-5 (ties count against), {self.loss} cross-entropy in nats",
            "calibration": f"expected error, {BINS} equal bins of the largest probability",
            **self._measured,
        }

    def draw(self, folder: Path) -> None:
        if self.num_classes <= MOST_DRAWN:
            confusion.draw(folder / "confusion.png", self._confusion, self.class_names)
