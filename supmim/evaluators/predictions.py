"""What the model says of a source: computed once for the same parameters, shared by evaluators."""

import functools
from typing import Any

import jax
import numpy as np

from supmim import sharding, step
from supmim.data import pipeline
from supmim.data.sources import Source


class Predictions:
    """sources: {"train": Source, "eval": Source}."""

    def __init__(
        self, task: step.Task, sources: dict[str, Source], batch_size: int, mesh: jax.sharding.Mesh
    ) -> None:
        self.task, self.sources, self.batch_size, self.mesh = task, sources, batch_size, mesh
        self._predict = jax.jit(
            functools.partial(step.eval_step, task=task), out_shardings=sharding.replicated(mesh)
        )
        self._params: Any = None
        self._known: dict[str, dict[str, np.ndarray]] = {}

    def of(self, params: Any, split: str) -> dict[str, np.ndarray]:
        """logits [n, C], embedding [n, D], label [n] of all n images of a source, in order."""
        if params is not self._params:
            self._params, self._known = params, {}
        if split not in self._known:
            self._known[split] = self.collect(functools.partial(self._predict, params), split)
        return self._known[split]

    def collect(self, function: Any, split: str) -> dict[str, np.ndarray]:
        """function(batch) -> dict of arrays [B, ...], over a source; padding is left out."""
        source, fetched = self.sources[split], []
        for batch in pipeline.eval_batches(source, self.batch_size, self.mesh):
            fetched.append(jax.device_get(function(batch)))
        return {
            name: np.concatenate([out[name] for out in fetched])[: len(source)]
            for name in fetched[0]
        }
