"""SIGTERM and Ctrl-C: the first asks the run to save and stop, the second ends it at once.

With several processes JAX's preemption service owns SIGTERM: it lets all of them stop at one step.
"""

import os
import signal
import sys
from types import FrameType

import jax
from jax.experimental import multihost_utils


class StopSignal:
    """Within `with StopSignal() as stop`, `stop.after(step)` tells whether to stop there."""

    def __init__(self) -> None:
        self.requested = False
        self._alone = jax.process_count() == 1
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "StopSignal":
        for number in (signal.SIGTERM, signal.SIGINT) if self._alone else (signal.SIGINT,):
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def after(self, step: int) -> bool:
        """Whether a signal came, to any of the processes; asked once a step, the same for all."""
        if self._alone:
            return self.requested
        return multihost_utils.reached_preemption_sync_point(step)

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self.requested:
            os._exit(128 + number)
        self.requested = True
        if not self._alone:
            os.kill(os.getpid(), signal.SIGTERM)  # JAX passes it on
        name = signal.Signals(number).name
        os.write(
            sys.stderr.fileno(),
            f"\nsupmim: {name}: finishing the step and saving; again to exit at once\n".encode(),
        )
