"""Exact nearest neighbours by cosine: recall at 1 and DINO's weighted vote.

Shapes: Q queries, M bank entries, D width, k neighbours.
"""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from supmim.data.images import Images
from supmim.data.sources import evenly
from supmim.errors import NumericsError
from supmim.evaluators.predictions import Predictions
from supmim.report import neighbours as neighbour_picture

K = 20  # neighbours that vote, DINO's reported value
TEMPERATURE = 0.07  # DINO's
QUERIES = 1024  # scored against the bank at once
PIXEL_FLOOR_LIMIT = 10**8  # pixel values of a source up to which the floors of raw pixels are taken


def normalize(embedding: np.ndarray, name: str) -> np.ndarray:
    """[n, D] -> unit rows. NumericsError if any is not finite or zero, or all are the same."""
    norm = np.linalg.norm(embedding, axis=1, keepdims=True)
    if not np.isfinite(embedding).all() or (norm == 0).any():
        bad = np.flatnonzero(~np.isfinite(embedding).all(axis=1) | (norm[:, 0] == 0))
        raise NumericsError(
            f"embeddings of {name} cannot be compared: {len(bad)} are zero or not finite, the "
            f"first is image {bad[0]}. Look at the losses in metrics.jsonl"
        )
    if len(embedding) > 1 and (embedding == embedding[0]).all():
        raise NumericsError(f"all embeddings of {name} are equal: neighbours mean nothing")
    return (embedding / norm).astype(np.float32)


@functools.partial(jax.jit, static_argnames="k")
def _nearest(queries: jax.Array, bank: jax.Array, excluded: jax.Array, k: int):
    """[Q, D], [M, D], [Q] bank ids left out -> cosines and bank ids, [Q, k] each."""
    similarity = jnp.matmul(queries, bank.T, precision="highest")
    similarity = jnp.where(jnp.arange(len(bank))[None] == excluded[:, None], -jnp.inf, similarity)
    return jax.lax.top_k(similarity, k)


def nearest(
    queries: np.ndarray, bank: np.ndarray, k: int, exclude_self: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and bank ids of the k nearest, [Q, k] each, by descending cosine: unit rows in.

    With exclude_self, query i is bank entry i and is left out. k is cut to what the bank holds.
    """
    k = min(k, len(bank) - exclude_self)
    fetched = []
    for first in range(0, len(queries), QUERIES):
        chunk = queries[first : first + QUERIES]
        missing = QUERIES - len(chunk)
        ids = np.arange(first, first + QUERIES) if exclude_self else np.full(QUERIES, -1)
        out = jax.device_get(_nearest(np.pad(chunk, ((0, missing), (0, 0))), bank, ids, k))
        fetched.append([x[: len(chunk)] for x in out])
    similarity, ids = (np.concatenate(parts) for parts in zip(*fetched, strict=True))
    return similarity, ids


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


class Evaluator:
    """knn/*: neighbours in the training source, and among the evaluation images, self excluded."""

    def __init__(self, predictions: Predictions, config: Any) -> None:
        self.predictions, self.num_classes = predictions, config.classifier.num_classes
        self.pictures, self._last = config.eval.pictures, {}
        train, evaluation = (predictions.sources[split] for split in ("train", "eval"))
        small = len(train) * train.sizes["image"] ** 2 * train.channels <= PIXEL_FLOOR_LIMIT
        self.floors = pixel_floors(train, evaluation) if small else {}

    def run(self, params: Any) -> dict[str, float]:
        """See Evaluator protocol."""
        train, out = (self.predictions.of(params, split) for split in ("train", "eval"))
        bank = normalize(train["embedding"], "the training source")
        queries = normalize(out["embedding"], "the evaluation source")
        similarity, ids = nearest(queries, bank, K)
        votes = vote(similarity, train["label"][ids], self.num_classes)
        _, own = nearest(queries, queries, 1, exclude_self=True)
        self._last = {
            "index": out["index"], "label": out["label"],
            "neighbour": train["index"][ids], "neighbour_label": train["label"][ids],
        }  # fmt: skip
        return {
            "knn/recall_at_1": float((train["label"][ids[:, 0]] == out["label"]).mean()),
            f"knn/dino_k{K}": float((votes == out["label"]).mean()),
            "knn/leave_one_out_recall_at_1": float(
                (out["label"][own[:, 0]] == out["label"]).mean()
            ),
            **self.floors,
        }

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
