"""The end of a run whose gradients stay non-finite, with a post-mortem."""

from collections import deque
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from supmim import metrics
from supmim.errors import NumericsError, counted
from supmim.runtime import hosts
from supmim.workdir.files import write_json

BAD_STEPS = 5  # in a row, after which a run stops


class NumericsWatch:
    """A check for non-finite gradients that looks one step late, so that no step waits for it."""

    def __init__(self, path: Path, seeds: dict[str, int], bad_steps: int = BAD_STEPS) -> None:
        self.path, self.seeds, self.bad_steps = path, seeds, bad_steps
        self._recent: deque[tuple[int, jax.Array, metrics.Metrics]] = deque(maxlen=bad_steps)

    def add(self, step: int, index: jax.Array, totals: metrics.Metrics) -> None:
        """Check the previous step, then note this one and the records in its batch."""
        self.check()
        self._recent.append((step, index, totals))

    def check(self) -> None:
        """Write a post-mortem and raise NumericsError if too many steps in a row were bad."""
        if not self._recent:
            return
        bad_in_a_row = float(self._recent[-1][2]["skipped_in_a_row"].compute())
        if bad_in_a_row < self.bad_steps:
            return
        steps = [_described(*recent) for recent in self._recent]
        written = hosts.on_first(lambda: self._write(steps))
        last = steps[-1]
        terms = [name for name in last if name.endswith("_loss") and last[name] == "not finite"]
        steps_told = counted(self.bad_steps, "step", "steps in a row")
        raise NumericsError(
            f"the gradient was not finite in {steps_told}, the last is step "
            f"{last['step']}; not finite: {', '.join(terms) or 'the gradient alone'}. None of them "
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


def _described(step: int, index: jax.Array, totals: metrics.Metrics) -> dict[str, Any]:
    records = np.asarray(multihost_utils.process_allgather(index, tiled=True)).tolist()
    values = metrics.summarize([totals])
    printable = {name: v if np.isfinite(v) else "not finite" for name, v in values.items()}
    return {"step": step, "index": records, **printable}
