"""What the model says of a source: computed once for the same parameters, shared by evaluators."""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np

from supmim import sharding, step
from supmim.data import pipeline
from supmim.data.images import Images, told
from supmim.data.landmarks import Landmarks
from supmim.errors import DataError, NumericsError
from supmim.evaluators.lib import ranking
from supmim.tasks.base import Task

SOURCES = {"train": "the training source", "eval": "the evaluation source",
           "gallery": "the gallery", "queries": "the queries"}  # fmt: skip
EMBEDDINGS = ("embedding", "features")  # arrays by which images are told apart


class Predictions:
    """sources: {"train": Images, "eval": Images}. readers: by which each is read.

    landmarks: if they are asked for, of the sources "gallery" and "queries".
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
        self._programs: dict[step.Forward, Any] = {}
        self._params: Any = None
        self._known: dict[tuple[step.Forward | None, str], dict[str, np.ndarray]] = {}
        self._banks: dict[str, tuple[np.ndarray, ranking.Bank]] = {}
        self._unreadable: dict[str, int] = {}

    def of(
        self, params: Any, split: str, forward: step.Forward | None = None
    ) -> dict[str, np.ndarray]:
        """logits [n, C], embedding [n, D], label, index [n] of all readable images, in order.

        forward: a method of the task other than `predict`, whose arrays are returned instead.
        NumericsError if any is not finite.
        """
        if params is not self._params:
            self._params, self._known, self._banks = params, {}, {}
        if (forward, split) not in self._known:
            out = self.fresh(params, split, forward)
            for name in out:
                check_finite(out[name], f"{name} of {SOURCES[split]}")
            self._known[forward, split] = out
        return self._known[forward, split]

    def embedded(
        self, params: Any, split: str, forward: step.Forward | None = None
    ) -> dict[str, np.ndarray]:
        """`of`, for those who learn from it: NumericsError for embeddings that mean nothing."""
        out = self.of(params, split, forward)
        for name in out.keys() & set(EMBEDDINGS):
            ranking.norms(out[name], SOURCES[split])
        return out

    def fresh(
        self, params: Any, split: str, forward: step.Forward | None = None
    ) -> dict[str, np.ndarray]:
        """The same of other parameters, without a word to those that share."""
        program = functools.partial(self._program(forward or self.task.predict), params)
        return self.collect(program, split)

    def _program(self, forward: step.Forward) -> Any:
        """The compiled program of one method of the task."""
        if forward not in self._programs:
            self._programs[forward] = jax.jit(
                functools.partial(step.eval_step, forward=forward),
                out_shardings=sharding.replicated(self.mesh),
            )
        return self._programs[forward]

    def bank(self, params: Any, split: str, mib: float) -> tuple[np.ndarray, ranking.Bank]:
        """Unit embeddings [n, D] of a source and the bank of them, made once like the rest.

        mib: see Bank. NumericsError for embeddings that mean nothing.
        """
        embedding = self.of(params, split)["embedding"]
        if split not in self._banks:
            rows = ranking.unit(embedding, SOURCES[split])
            self._banks[split] = rows, ranking.Bank(rows, self.mesh, mib)
        return self._banks[split]

    def collect(self, function: Any, split: str) -> dict[str, np.ndarray]:
        """function(batch) -> dict of arrays [B, ...] with `valid`, over the valid rows of a source.

        DataError if there is none.
        """
        images, fetched = self.sources[split], []
        for batch in pipeline.eval_batches(images, self.batch_size, self.mesh, self.readers[split]):
            fetched.append(jax.device_get(function(batch)))
        whole = {name: np.concatenate([out[name] for out in fetched]) for name in fetched[0]}
        kept = whole["valid"] > 0
        if not kept.any():
            raise DataError(f"{images.name}: none of its {len(images)} images can be read")
        self.lacks(split, len(images) - int(kept.sum()))
        return {name: values[kept] for name, values in whole.items()}

    def lacks(self, split: str, count: int) -> None:
        """So many images of a source could not be read."""
        self._unreadable[split] = count

    def read(self) -> tuple[str, ...]:
        """The sources that were read, whatever they lacked."""
        return tuple(self._unreadable)

    def data(self) -> dict[str, Any]:
        """Name, number of images and digest of each source, and the `view` of their images."""
        seen = self.sources["eval"]
        return {
            **{split: told(images.source) for split, images in self.sources.items()},
            **(self.landmarks.fingerprint() if self.landmarks else {}),
            "view": dataclasses.asdict(seen.box_of) | {"interpolation": seen.method},
        }

    def unreadable(self) -> dict[str, float]:
        """How many images each source lacked; empty if the results are complete."""
        return {f"unreadable/{split}": float(n) for split, n in self._unreadable.items() if n}


def check_finite(values: np.ndarray, name: str) -> None:
    """NumericsError unless all [n, ...] are finite."""
    bad = np.flatnonzero(~np.isfinite(values).all(axis=tuple(range(1, values.ndim))))
    if len(bad):
        raise NumericsError(
            f"{name} are not finite for {len(bad)} images, the first is image {bad[0]}. Look at "
            "the losses in metrics.jsonl"
        )
