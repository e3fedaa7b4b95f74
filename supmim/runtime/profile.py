"""A trace of some steps of a run, for xprof."""

import contextlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from supmim.errors import ConfigError

MOST_STEPS = 1000  # of one trace, which is kept in memory


class Profile:
    """A trace of steps START to STOP, both included, in `folder`; no trace if span is empty.

    told_as: the place of the trace in messages, if it is uploaded from `folder`.
    """

    def __init__(
        self, span: str, folder: Path, log: Callable[[str], None], told_as: Path | None = None
    ) -> None:
        self.folder, self.log, self.told_as = folder, log, told_as or folder
        self.start, self.stop = parse(span)
        if jax.process_index():
            self.start, self.stop = 0, 0  # only the first process writes
        self._tracing, self._over = False, not self.start

    @property
    def ends(self) -> tuple[int, int]:
        """The steps after which a call must end, so that no other steps are traced."""
        return max(self.start - 1, 0), self.stop

    def call(self, steps: range) -> contextlib.AbstractContextManager:
        """Mark a call, of steps numbered from 1; a run that begins after START traces the rest."""
        if self.start <= steps[0] <= self.stop and not self._tracing and not self._over:
            jax.profiler.start_trace(str(self.folder))
            self._tracing = True
        if not self._tracing:
            return contextlib.nullcontext()
        return jax.profiler.StepTraceAnnotation("train", step_num=steps[0])

    def done(self, steps: range, result: Any) -> None:
        """End the trace after STOP, once the devices have computed the result."""
        if self._tracing and steps[-1] >= self.stop:
            self._finish(result)

    def close(self, result: Any) -> None:
        """End a trace if the run ends before STOP; log if none of its steps was run."""
        if self._tracing:
            self._finish(result)
        elif not self._over:
            steps = f"no step from {self.start} to {self.stop} was run"
            self.log(f"profile     {steps}, so there is no trace")

    def _finish(self, result: Any) -> None:
        jax.block_until_ready(result)
        jax.profiler.stop_trace()
        self._tracing, self._over = False, True
        self.log(
            f"profile     {self.told_as}; look at it with:\n"
            f"            pip install -e '.[profile]' && xprof --logdir={self.told_as}"
        )


def parse(span: str) -> tuple[int, int]:
    """Return the step numbers of START:STOP, (0, 0) if empty; ConfigError for anything else."""
    if not span:
        return 0, 0
    found = re.fullmatch(r"(\d+):(\d+)", span)
    start, stop = map(int, found.groups()) if found else (0, 0)
    if not 1 <= start <= stop:
        raise ConfigError(f"--profile={span} is not START:STOP in steps, e.g. --profile=10:15")
    if stop - start >= MOST_STEPS:
        raise ConfigError(
            f"--profile={span} would keep more than {MOST_STEPS} steps in memory; nearest: "
            f"--profile={start}:{start + MOST_STEPS - 1}"
        )
    return start, stop
