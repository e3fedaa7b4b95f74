"""Checks of gradients: spikes are logged; a run that stays non-finite ends with a post-mortem."""

import json
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from supmim import config as config_lib
from supmim import metrics
from supmim.config import Config
from supmim.errors import NumericsError, counted
from supmim.runtime import hosts
from supmim.workdir.checkpoint import Checkpoints
from supmim.workdir.files import write_json

BAD_STEPS = 5  # in a row, after which a run stops
POST_MORTEM = "postmortem.json"
NOT_FINITE = "not finite"  # replaces such a value in a post-mortem
About = Callable[[int], dict[str, Any]]  # a step -> facts of a post-mortem besides its steps


class Recent(NamedTuple):
    """A call whose arrays are still on the devices: record numbers [slots, B], and its metrics."""

    steps: range
    index: jax.Array
    totals: metrics.Metrics


class NumericsWatch:
    """A check for non-finite gradients that looks one call late, so that no step waits for it.

    about: returns the facts of a run before a step. log: receives messages about spikes, see
    updates.spikes. spikes: how many there were before.
    """

    def __init__(
        self,
        workdir: Path,
        about: About,
        bad_steps: int = BAD_STEPS,
        log: Callable[[str], None] = print,
        spikes: int = 0,
    ) -> None:
        self.workdir, self.about, self.bad_steps = workdir, about, bad_steps
        self.log, self._spikes = log, spikes
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
        self._tell_spikes(newest)
        in_a_row = np.asarray(newest.totals["skipped_in_a_row"].compute())[: len(newest.steps)]
        if in_a_row.max() < self.bad_steps:
            return
        last = newest.steps[int(np.argmax(in_a_row >= self.bad_steps))]
        each = [one for recent in self._recent for one in _described(recent)]
        steps = [one for one in each if last - self.bad_steps < one["step"] <= last]
        written = hosts.on_first(lambda: self._write(steps))
        found = steps[-1]
        terms = [name for name in found if name.endswith("_loss") and found[name] == NOT_FINITE]
        steps_told = counted(self.bad_steps, "step", "steps in a row")
        raise NumericsError(
            f"the gradient was not finite in {steps_told}, the last is step "
            f"{last}; not finite: {', '.join(terms) or 'the gradient alone'}. None of them "
            f"changed a parameter. {written}\n"
            "A lower config.optimizer.learning_rate or a longer warm-up may help",
            fault="N1",
        )

    def _tell_spikes(self, newest: Recent) -> None:
        counts = np.asarray(newest.totals["spikes"].compute())[: len(newest.steps)]
        before = np.maximum([self._spikes, *counts[:-1]], self._spikes)
        jumps, self._spikes = np.flatnonzero(counts > before), int(counts[-1])
        each = metrics.each(newest.totals, len(newest.steps)) if len(jumps) else []
        for at in jumps:
            found = metrics.summarize([each[at]])
            self.log(
                f"{f'spike {counts[at]:,}':<11} step {newest.steps[at]:,}: loss "
                f"{found['loss']:.3g} or gradient norm {found['grad_norm']:.3g} far above usual"
            )

    def _write(self, steps: list[dict[str, Any]]) -> str:
        """Write the post-mortem and say where it is; a full disk must not hide what happened."""
        path = self.workdir / POST_MORTEM
        try:
            write_json(path, {**self.about(steps[0]["step"]), "steps": steps})
        except (OSError, ValueError) as error:  # the disk, or damaged digests
            why = error.strerror if isinstance(error, OSError) else error
            return f"Batches and norms could not be written to {path}: {why}."
        return (
            f"Batches and norms are in {path}. To take these steps again:\n"
            f"  supmim replay --postmortem={path}"
        )


def _described(recent: Recent) -> list[dict[str, Any]]:
    records = np.asarray(multihost_utils.process_allgather(recent.index, tiled=True)).tolist()
    each = metrics.each(recent.totals, len(recent.steps))
    return [described(*one) for one in zip(recent.steps, records, each, strict=False)]


def described(step: int, index: list[int], totals: metrics.Metrics) -> dict[str, Any]:
    """Return a step of a post-mortem: its number, the records of its batch, its metrics."""
    values = metrics.summarize([totals])
    printable = {name: v if np.isfinite(v) else NOT_FINITE for name, v in values.items()}
    return {"step": step, "index": index, **printable}


def before_step(config: Config, checkpoints: Checkpoints, step: int) -> dict[str, Any]:
    """Return what a post-mortem needs to reach a step again: config, seeds, checkpoint."""
    earlier = [number for number in checkpoints.steps() if number < step]
    newest = {"step": 0}
    if earlier:
        newest = {"step": earlier[-1], "digest": checkpoints.digest(earlier[-1])}
    seeds = {"seed": config.seed, "data_seed": config.data.seed}
    return {**seeds, "checkpoint": newest, "config": json.loads(config_lib.to_json(config))}
