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

VOTERS = (10, 20, 100, 200)  # neighbours that vote, as in DINO, which reports 20
TEMPERATURE = 0.07  # DINO's
PIXEL_FLOOR_LIMIT = 10**8  # pixel values of a source up to which the floors of raw pixels are taken
RANDOM_FLOOR_LIMIT = 100_000  # images of both sources up to which a random encoder sees them
RANDOM = 2**31 - 1  # folded into the run's seed: a key of its own


def vote(similarity: np.ndarray, label: np.ndarray, num_classes: int) -> np.ndarray:
    """DINO's class of each query: exp(cosine / T) summed per class. [Q, k], [Q, k] -> [Q]."""
    weight = np.exp((similarity - similarity.max(axis=1, keepdims=True)) / TEMPERATURE)
    scores = np.zeros((len(label), num_classes))
    np.add.at(scores, (np.arange(len(label))[:, None], label), weight)
    return scores.argmax(axis=1)


def _readable(images: Images) -> dict[str, np.ndarray]:
    index = np.arange(len(images))
    arrays, bad = images.take(index, np.zeros_like(index))
    return {name: np.delete(values, list(bad), axis=0) for name, values in arrays.items()}


def pixel_floors(train: Images, evaluation: Images) -> dict[str, float]:
    """Recall at 1 of raw pixels: what an embedding must beat."""
    train, evaluation = (_readable(images) for images in (train, evaluation))
    bank, queries = (
        split["image"].reshape(len(split["image"]), -1).astype(np.float32)
        for split in (train, evaluation)
    )

    def recall(similarity):
        return float((train["label"][similarity.argmax(axis=1)] == evaluation["label"]).mean())

    lengths = np.maximum(np.linalg.norm(bank, axis=1), 1e-12)
    product = queries @ bank.T
    return {
        "floor/knn_pixels_cosine": recall(product / lengths),
        "floor/knn_pixels_euclidean": recall(product - (bank**2).sum(axis=1) / 2),
    }


def random_floor(predictions: Predictions, seed: int, mib: float) -> dict[str, float]:
    """Recall at 1 of the same encoder before any training: what its architecture alone knows."""
    key = jax.random.fold_in(jax.random.key(seed), RANDOM)
    init = predictions.task.init
    where = sharding.state_sharding(jax.eval_shape(init, key), predictions.mesh)
    params = jax.jit(init, out_shardings=where)(key)
    train, out = (predictions.fresh(params, split) for split in ("train", "eval"))
    rows, queries = (ranking.unit(split["embedding"], "a random encoder") for split in (train, out))
    _, ids = ranking.Bank(rows, predictions.mesh, mib).nearest(queries, 1)
    recall = (train["label"][ids[:, 0]] == out["label"]).mean()
    return {"floor/random_encoder_recall_at_1": float(recall)}


def leave_one_out(bank: ranking.Bank, rows: np.ndarray, label: np.ndarray) -> dict[str, float]:
    """Recall at 1 of each row [n, D] of a bank among the others; nothing of one alone."""
    if len(rows) < 2:
        return {}
    _, ids = bank.nearest(rows, 1, exclude_self=True)
    return {"knn/leave_one_out_recall_at_1": float((label[ids[:, 0]] == label).mean())}


class Evaluator:
    """knn/*: neighbours in the training source, and among the evaluation images, self excluded.

    A query whose class the bank lacks counts as wrong. Floors, of small sources alone, are taken
    once: of raw pixels and of a random encoder.
    """

    def __init__(self, predictions: Predictions, config: Config) -> None:
        self.predictions, self.num_classes = predictions, config.classifier.num_classes
        self.pictures, self._last, self._searched = config.eval.pictures, {}, 0
        self.mib, self.seed = config.eval.similarity_mib, config.seed
        self.floors: dict[str, float] | None = None

    def run(self, params: Any) -> dict[str, float]:
        """See Evaluator protocol."""
        train, out = (self.predictions.of(params, split) for split in ("train", "eval"))
        rows, bank = self.predictions.bank(params, "train", self.mib)
        queries, among = self.predictions.bank(params, "eval", self.mib)
        similarity, ids = bank.nearest(queries, max(VOTERS))
        if self.floors is None:
            self.floors = self.measured_floors()
        self._searched = len(rows)
        self._last = {
            "index": out["index"], "label": out["label"],
            "neighbour": train["index"][ids], "neighbour_label": train["label"][ids],
        }  # fmt: skip
        return {
            "knn/recall_at_1": float((train["label"][ids[:, 0]] == out["label"]).mean()),
            **{
                f"knn/dino_k{k}": self.right(similarity[:, :k], train["label"][ids[:, :k]], out)
                for k in VOTERS
                if k <= len(rows)
            },
            **leave_one_out(among, queries, out["label"]),
            **self.floors,
        }

    def measured_floors(self) -> dict[str, float]:
        """Those that cost little here."""
        train, evaluation = (self.predictions.sources[split] for split in ("train", "eval"))
        values = len(train) * train.sizes["image"] ** 2 * train.channels
        floors = pixel_floors(train, evaluation) if values <= PIXEL_FLOOR_LIMIT else {}
        if len(train) + len(evaluation) <= RANDOM_FLOOR_LIMIT:
            floors |= random_floor(self.predictions, self.seed, self.mib)
        return floors

    def right(self, similarity: np.ndarray, label: np.ndarray, out: dict) -> float:
        """Share of the queries that [Q, k] neighbours of these labels vote right."""
        return float((vote(similarity, label, self.num_classes) == out["label"]).mean())

    def protocol(self) -> dict[str, Any]:
        """See Evaluator protocol."""
        return {
            "what": "evaluation images in the training source; leave_one_out among themselves",
            "feature": "embedding, L2-normalised", "metric": "cosine, exact search",
            "k": [k for k in VOTERS if k <= self._searched], "T": TEMPERATURE,
            "queries": len(self._last["label"]), "bank": self._searched,
        }  # fmt: skip

    def draw(self, folder: Path) -> None:
        """neighbours.png: some wrong queries first, then others, each evenly taken."""
        index, label, neighbour, found = self._last.values()
        wrong = np.flatnonzero(found[:, 0] != label)
        wrong = wrong[evenly(len(wrong), self.pictures // 2)]
        others = np.setdiff1d(np.arange(len(label)), wrong)
        others = others[evenly(len(others), self.pictures - len(wrong))]
        rows = np.concatenate([wrong, others])
        sources, shown = self.predictions.sources, neighbour_picture.NEIGHBOURS
        columns = min(shown, found.shape[1])
        bank = sources["train"].read(neighbour[rows, :columns].ravel())["image"]
        neighbour_picture.draw(
            folder / "neighbours.png",
            query=sources["eval"].read(index[rows])["image"],
            neighbours=bank.reshape(len(rows), columns, *bank.shape[1:]),
            query_label=label[rows],
            neighbour_label=found[rows, :columns],
            class_names=sources["train"].class_names,
        )
