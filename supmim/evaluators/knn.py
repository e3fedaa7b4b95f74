"""Exact nearest neighbours by cosine: recall at 1 and DINO's weighted vote.

Shapes: Q queries, k neighbours.
"""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from supmim import sharding
from supmim.config import Config
from supmim.data.images import Images
from supmim.data.sources.base import evenly
from supmim.evaluators.lib import ranking
from supmim.evaluators.lib.predictions import Predictions
from supmim.report import neighbours as neighbour_picture
from supmim.runtime import devices

VOTERS = (10, 20, 100, 200)  # neighbours that vote, as in DINO, which reports 20
TEMPERATURE = 0.07  # DINO's
PIXEL_FLOOR_LIMIT = 10**8  # most pixel values of a training source for floors of raw pixels
FLOORS = ("floor/knn_pixels", "floor/random_encoder")
RANDOM_FLOOR_LIMIT = 100_000  # most images of both sources for the floor of a random encoder
RANDOM_ENCODER = 2**31 - 1  # folded into the run's seed: a key that nothing else uses


def vote(similarity: np.ndarray, label: np.ndarray, num_classes: int) -> np.ndarray:
    """Return DINO's class of each query, exp(cosine / T) summed per class: [Q, k] twice -> [Q]."""
    weight = ranking.weights(similarity, TEMPERATURE)
    scores = np.zeros((len(label), num_classes))
    np.add.at(scores, (np.arange(len(label))[:, None], label), weight)
    return scores.argmax(axis=1)


def pixel_floors(
    train: Images, evaluation: Images, mesh: jax.sharding.Mesh, mib: float
) -> dict[str, float]:
    """Return the recall at 1 of raw pixels, which an embedding must beat. mib: see Bank."""
    known, asked = (images.read_valid(np.arange(len(images))) for images in (train, evaluation))
    rows, queries = (
        split["image"].reshape(len(split["image"]), -1).astype(np.float32)
        for split in (known, asked)
    )

    def recall(rows: np.ndarray, queries: np.ndarray) -> float:
        _, ids = ranking.Bank(rows, mesh, mib).nearest(queries, 1)
        return float((known["label"][ids[:, 0]] == asked["label"]).mean())

    squared = np.einsum("nd,nd->n", rows, rows, dtype=np.float64).astype(np.float32)[:, None]
    return {
        "floor/knn_pixels_cosine": recall(rows / np.maximum(np.sqrt(squared), 1e-12), queries),
        "floor/knn_pixels_euclidean": recall(  # the nearest row b has the largest q.b - b.b / 2
            np.hstack([rows, -squared / 2]), np.pad(queries, ((0, 0), (0, 1)), constant_values=1)
        ),
    }


def random_floor(predictions: Predictions, seed: int, mib: float) -> dict[str, float]:
    """Return the recall at 1 of the same encoder before any training."""
    key = jax.random.fold_in(jax.random.key(seed), RANDOM_ENCODER)
    init = predictions.task.init
    where = sharding.state_sharding(jax.eval_shape(init, key), predictions.mesh)
    params = devices.initialised(init, key, where)
    train, out = (predictions.fresh(params, split) for split in ("train", "eval"))
    rows, queries = (ranking.unit(split["embedding"], "a random encoder") for split in (train, out))
    _, ids = ranking.Bank(rows, predictions.mesh, mib).nearest(queries, 1)
    recall = (train["label"][ids[:, 0]] == out["label"]).mean()
    return {"floor/random_encoder_recall_at_1": float(recall)}


def leave_one_out(bank: ranking.Bank, rows: np.ndarray, label: np.ndarray) -> dict[str, float]:
    """Return the recall at 1 of each row [n, D] of a bank among the others; {} for a single row."""
    if len(rows) < 2:
        return {}
    _, ids = bank.nearest(rows, 1, exclude_self=True)
    return {"knn/leave_one_out_recall_at_1": float((label[ids[:, 0]] == label).mean())}


class Evaluator:
    """knn/*: neighbours in the training source, and among the evaluation images, self excluded.

    A query whose class is missing from the bank counts as wrong. config.eval.all_labels: also in
    the training source as it was before config.data.labels set some labels aside. Floors, of raw
    pixels and of a random encoder, are measured once and for small sources only.
    """

    def __init__(self, predictions: Predictions, config: Config) -> None:
        self.predictions, self.num_classes = predictions, config.classifier.num_classes
        self.pictures, self._last, self._bank_size = config.eval.pictures, {}, 0
        self.mib, self.seed = config.eval.similarity_mib, config.seed
        known = {n: x for n, x in predictions.floors.items() if n.startswith(FLOORS)}
        self.floors: dict[str, float] | None = known or None

    def run(self, params: Any) -> dict[str, float]:
        train, out = (self.predictions.of(params, split) for split in ("train", "eval"))
        rows, bank = self.predictions.bank(params, "train", self.mib)
        queries, among = self.predictions.bank(params, "eval", self.mib)
        similarity, ids = bank.nearest(queries, max(VOTERS))
        if self.floors is None:
            self.floors = self.measure_floors()
        self._bank_size = len(rows)
        found = train["label"][ids]
        self._last = {"neighbour": train["index"][ids], "neighbour_label": found}
        self._last |= {"index": out["index"], "label": out["label"]}
        results = {"knn/recall_at_1": float((found[:, 0] == out["label"]).mean())}
        for k in (k for k in VOTERS if k <= len(rows)):
            predicted = vote(similarity[:, :k], found[:, :k], self.num_classes)
            results[f"knn/dino_k{k}"] = float((predicted == out["label"]).mean())
        results |= leave_one_out(among, queries, out["label"]) | self.floors
        return results | self.all_labels(params, queries, out["label"])

    def all_labels(self, params: Any, queries: np.ndarray, label: np.ndarray) -> dict[str, float]:
        """Return the recall at 1 in the source before labels were set aside; {} if they were not.

        queries: unit embeddings [Q, D]; label: [Q].
        """
        if "whole" not in self.predictions.sources:
            return {}
        whole = self.predictions.of(params, "whole")
        _, bank = self.predictions.bank(params, "whole", self.mib)
        _, ids = bank.nearest(queries, 1)
        return {"knn/all_labels_recall_at_1": float((whole["label"][ids[:, 0]] == label).mean())}

    def measure_floors(self) -> dict[str, float]:
        """Return the floors that are cheap enough for these sources."""
        train, evaluation = (self.predictions.sources[split] for split in ("train", "eval"))
        values = len(train) * train.sizes["image"] ** 2 * train.channels
        floors = {}
        if values <= PIXEL_FLOOR_LIMIT:
            floors = pixel_floors(train, evaluation, self.predictions.mesh, self.mib)
        if len(train) + len(evaluation) <= RANDOM_FLOOR_LIMIT:
            floors |= random_floor(self.predictions, self.seed, self.mib)
        return floors

    def protocol(self) -> dict[str, Any]:
        return {
            "what": "evaluation images in the training source; leave_one_out among themselves",
            "feature": "embedding, L2-normalised",
            "metric": "cosine, exact search",
            "k": [k for k in VOTERS if k <= self._bank_size],
            "T": TEMPERATURE,
            "queries": len(self._last["label"]),
            "bank": self._bank_size,
        }

    def draw(self, folder: Path) -> None:
        label, found = self._last["label"], self._last["neighbour_label"]
        wrong = np.flatnonzero(found[:, 0] != label)
        wrong = wrong[evenly(len(wrong), self.pictures // 2)]
        others = np.setdiff1d(np.arange(len(label)), wrong)
        others = others[evenly(len(others), self.pictures - len(wrong))]
        rows = np.concatenate([wrong, others])
        columns = min(neighbour_picture.NEIGHBOURS, found.shape[1])
        sources, neighbour = self.predictions.sources, self._last["neighbour"][rows, :columns]
        bank = sources["train"].read(neighbour.ravel())["image"]
        neighbour_picture.draw(
            folder / "neighbours.png",
            query=sources["eval"].read(self._last["index"][rows])["image"],
            neighbours=bank.reshape(len(rows), columns, *bank.shape[1:]),
            query_label=label[rows],
            neighbour_label=found[rows, :columns],
            class_names=sources["train"].class_names,
        )
