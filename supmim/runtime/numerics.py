"""Ends a run whose gradients stay not finite, with a post-mortem."""

from collections import deque
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from supmim import metrics
from supmim.errors import NumericsError
from supmim.runtime import hosts
from supmim.workdir.files import write_json

BAD_STEPS = 5  # in a row, after which a run stops


class NumericsWatch:
    """Looks one step late, so that no step waits for it."""

    def __init__(self, path: Path, seeds: dict[str, int], bad_steps: int = BAD_STEPS) -> None:
        self.path, self.seeds, self.bad_steps = path, seeds, bad_steps
        self._recent: deque[tuple[int, jax.Array, metrics.Metrics]] = deque(maxlen=bad_steps)

    def add(self, step: int, index: jax.Array, totals: metrics.Metrics) -> None:
        """Checks the step before, then takes note of this one and the records in its batch."""
        self.check()
        self._recent.append((step, index, totals))

    def check(self) -> None:
        """NumericsError, after writing the post-mortem, if too many steps in a row were bad."""
        if not self._recent or self._bad_in_a_row() < self.bad_steps:
            return
        steps = [
            {"step": step, "index": _everywhere(index).tolist(), **_printable(totals)}
            for step, index, totals in self._recent
        ]
        hosts.together(lambda: write_json(self.path, {**self.seeds, "steps": steps}))
        last = steps[-1]
        terms = [name for name in last if name.endswith("_loss") and last[name] == "not finite"]
        raise NumericsError(
            f"the gradient was not finite in {self.bad_steps} steps in a row, the last is step "
            f"{last['step']}; not finite: {', '.join(terms) or 'the gradient alone'}. None of them "
            f"changed a parameter. Batches and norms are in {self.path}; a lower "
            "config.optimizer.learning_rate or a longer warm-up may help"
        )

    def _bad_in_a_row(self) -> float:
        return float(self._recent[-1][2]["skipped_in_a_row"].value)


def _everywhere(index: jax.Array) -> np.ndarray:
    return np.asarray(multihost_utils.process_allgather(index, tiled=True))


def _printable(totals: metrics.Metrics) -> dict[str, float | str]:
    values = metrics.summarize([totals])
    return {name: v if np.isfinite(v) else "not finite" for name, v in values.items()}
