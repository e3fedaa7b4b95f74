"""Predictions of a source: computed once for the same parameters, shared by evaluators."""

import functools
from typing import Any

import jax
import numpy as np

from supmim import sharding, step
from supmim.data import pipeline
from supmim.data.images import Images, source_digest
from supmim.data.landmarks import Landmarks
from supmim.data.sources import num_shared
from supmim.errors import DataError, NumericsError, counted
from supmim.evaluators.lib import ranking
from supmim.runtime.progress import doing
from supmim.tasks.base import Task

Arrays = dict[str, np.ndarray]
SOURCES = {
    "train": "the training source",
    "whole": "the training source with all labels",
    "eval": "the evaluation source",
    "gallery": "the gallery",
    "queries": "the queries",
}
EMBEDDINGS = ("embedding", "features")  # arrays that must distinguish images


class Predictions:
    """The outputs of a task for every image of each source, cached for one set of parameters.

    sources: {"train": Images, "eval": Images}, read by `readers` of the same names. "whole" is the
    training source with the labels that were set aside, if they are searched too. landmarks, if
    they are evaluated, add the sources "gallery" and "queries". floors: those of the same images,
    if an earlier evaluation measured them.
    """

    def __init__(
        self,
        task: Task,
        sources: dict[str, Images],
        batch_size: int,
        mesh: jax.sharding.Mesh,
        readers: dict[str, pipeline.Readers],
        landmarks: Landmarks | None = None,
    ) -> None:
        self.task, self.sources, self.batch_size, self.mesh = task, sources, batch_size, mesh
        self.readers, self.landmarks = readers, landmarks
        self.floors: dict[str, float] = {}
        self._programs: dict[step.Forward, Any] = {}
        self._params: Any = None
        self._cache: dict[tuple[step.Forward | None, str], Arrays] = {}
        self._banks: dict[str, tuple[np.ndarray, ranking.Bank]] = {}
        self._missing: dict[str, int] = {}

    @functools.cached_property
    def all_shared(self) -> bool:
        """Whether every evaluation image is in the training source too."""
        train, evaluation = (self.sources[split].source for split in ("train", "eval"))
        return num_shared(train, evaluation) == len(evaluation)

    def of(self, params: Any, split: str, forward: step.Forward | None = None) -> Arrays:
        """Return logits [n, C], embedding [n, D], label, index [n] of readable images, in order.

        forward: another method of the task than `predict`, whose arrays are returned instead.
        NumericsError if any value is not finite.
        """
        if params is not self._params:
            self._params, self._cache, self._banks = params, {}, {}
        if (forward, split) not in self._cache:
            out = self.fresh(params, split, forward)
            for name in out:
                check_finite(out[name], f"{name} of {SOURCES[split]}")
            self._cache[forward, split] = out
        return self._cache[forward, split]

    def checked(self, params: Any, split: str, forward: step.Forward | None = None) -> Arrays:
        """Return `of`; NumericsError if its embeddings cannot be learned from (see ranking)."""
        out = self.of(params, split, forward)
        for name in out.keys() & set(EMBEDDINGS):
            ranking.norms(out[name], SOURCES[split])
        return out

    def fresh(self, params: Any, split: str, forward: step.Forward | None = None) -> Arrays:
        """Compute the predictions for other parameters without touching the cache."""
        forward = forward or self.task.predict
        if forward not in self._programs:
            self._programs[forward] = jax.jit(
                functools.partial(step.eval_step, forward=forward),
                out_shardings=sharding.replicated(self.mesh),
            )
        return self.collect(functools.partial(self._programs[forward], params), split)

    def bank(self, params: Any, split: str, mib: float) -> tuple[np.ndarray, ranking.Bank]:
        """Return unit embeddings [n, D] of a source and the bank of them, cached like the rest.

        mib: see Bank. NumericsError if the embeddings cannot be compared.
        """
        embedding = self.of(params, split)["embedding"]
        if split not in self._banks:
            rows = ranking.unit(embedding, SOURCES[split])
            self._banks[split] = rows, ranking.Bank(rows, self.mesh, mib)
        return self._banks[split]

    def collect(self, function: Any, split: str) -> Arrays:
        """Return the valid rows of function(batch) -> {name: [B, ...]}, with `valid`, on a source.

        DataError if there are none.
        """
        images, fetched = self.sources[split], []
        batches = pipeline.eval_batches(images, self.batch_size, self.mesh, self.readers[split])
        with doing(SOURCES[split], len(images)) as advance:
            for batch in batches:
                fetched.append(jax.device_get(function(batch)))
                advance(self.batch_size)
        whole = {name: np.concatenate([out[name] for out in fetched]) for name in fetched[0]}
        kept = whole["valid"] > 0
        if not kept.any():
            raise DataError(
                f"{images.name}: none of its {counted(len(images), 'image')} can be read"
            )
        self.record_missing(split, len(images) - int(kept.sum()))
        return {name: values[kept] for name, values in whole.items()}

    def record_missing(self, split: str, count: int) -> None:
        """Record how many images of a source could not be read."""
        self._missing[split] = count

    def sources_read(self) -> tuple[str, ...]:
        """Return the names of the sources that were read, complete or not."""
        return tuple(self._missing)

    def data(self) -> dict[str, Any]:
        """Return name, number of images and digest of each source, and the `view` of its images."""
        seen = self.sources["eval"]
        return {
            **{split: source_digest(images.source) for split, images in self.sources.items()},
            **(self.landmarks.fingerprint() if self.landmarks else {}),
            "view": vars(seen.box_of) | {"interpolation": seen.method},
        }

    def unreadable(self) -> dict[str, float]:
        """Return the number of unreadable images of each source that has any."""
        return {f"unreadable/{split}": float(n) for split, n in self._missing.items() if n}


def check_finite(values: np.ndarray, name: str) -> None:
    """Raise NumericsError unless all values [n, ...] are finite."""
    bad = np.flatnonzero(~np.isfinite(values).all(axis=tuple(range(1, values.ndim))))
    if len(bad):
        raise NumericsError(
            f"{name} are not finite for {counted(len(bad), 'image')}; the first is image "
            f"{bad[0]}. Look at the losses in metrics.jsonl"
        )
