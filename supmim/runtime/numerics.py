"""The end of a run whose gradients stay non-finite, with a post-mortem."""

from collections import deque
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from supmim import metrics
from supmim.errors import NumericsError, counted
from supmim.runtime import hosts
from supmim.workdir.files import write_json

BAD_STEPS = 5  # in a row, after which a run stops


class Recent(NamedTuple):
    """A call, as it stays on the devices: the record numbers [slots, B], and its metrics."""

    steps: range
    index: jax.Array
    totals: metrics.Metrics


class NumericsWatch:
    """A check for non-finite gradients that looks one call late, so that no step waits for it."""

    def __init__(self, path: Path, seeds: dict[str, int], bad_steps: int = BAD_STEPS) -> None:
        self.path, self.seeds, self.bad_steps = path, seeds, bad_steps
        self._recent: deque[Recent] = deque()

    def add(self, steps: range, index: jax.Array, totals: metrics.Metrics) -> None:
        """Check the previous call, then note this one and the records in its batches."""
        self.check()
        self._recent.append(Recent(steps, index, totals))
        while steps[0] - self._recent[0].steps[-1] >= self.bad_steps:
            self._recent.popleft()

    def check(self) -> None:
        """Write a post-mortem and raise NumericsError if too many steps in a row were bad."""
        if not self._recent:
            return
        newest = self._recent[-1]
        in_a_row = np.asarray(newest.totals["skipped_in_a_row"].compute())[: len(newest.steps)]
        if in_a_row.max() < self.bad_steps:
            return
        last = newest.steps[int(np.argmax(in_a_row >= self.bad_steps))]
        each = [one for recent in self._recent for one in _described(recent)]
        steps = [one for one in each if last - self.bad_steps < one["step"] <= last]
        written = hosts.on_first(lambda: self._write(steps))
        found = steps[-1]
        terms = [name for name in found if name.endswith("_loss") and found[name] == "not finite"]
        steps_told = counted(self.bad_steps, "step", "steps in a row")
        raise NumericsError(
            f"the gradient was not finite in {steps_told}, the last is step "
            f"{last}; not finite: {', '.join(terms) or 'the gradient alone'}. None of them "
            f"changed a parameter. {written}; a lower "
            "config.optimizer.learning_rate or a longer warm-up may help"
        )

    def _write(self, steps: list[dict[str, Any]]) -> str:
        """Write the post-mortem and say where it is; a full disk must not hide what happened."""
        try:
            write_json(self.path, {**self.seeds, "steps": steps})
        except OSError as error:
            return f"Batches and norms could not be written to {self.path}: {error.strerror}"
        return f"Batches and norms are in {self.path}"


def _described(recent: Recent) -> list[dict[str, Any]]:
    records = np.asarray(multihost_utils.process_allgather(recent.index, tiled=True)).tolist()
    found = []
    for step, index, totals in zip(
        recent.steps, records, metrics.each(recent.totals, len(recent.steps)), strict=False
    ):
        values = metrics.summarize([totals])
        printable = {name: v if np.isfinite(v) else "not finite" for name, v in values.items()}
        found.append({"step": step, "index": index, **printable})
    return found
