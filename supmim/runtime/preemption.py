"""SIGTERM and Ctrl-C: the first asks a run to save and stop, the second ends it at once.

Once all is saved, the first one ends the run too.

With several processes, JAX's preemption service owns SIGTERM and stops all of them at one step.
"""

import contextlib
import os
import signal
import sys
import threading
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils

from supmim.errors import Interrupted


class StopSignal:
    """A request to stop: within `with StopSignal() as stop`, see whether `stop.asked()`."""

    def __init__(self) -> None:
        self.requested = False
        self._saved, self._times = "", 0
        self._alone = jax.process_count() == 1
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is not threading.main_thread():
            return self  # Python takes signals in its main thread, whose handlers stay as they are
        for number in (signal.SIGTERM, signal.SIGINT) if self._alone else (signal.SIGINT,):
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def asked(self) -> bool:
        """Return whether any process got a signal; the answer is the same on all processes.

        They ask equally often.
        """
        if self._alone:
            return self.requested
        self._times += 1
        return multihost_utils.reached_preemption_sync_point(self._times)

    def all_is_saved(self, message: str) -> None:
        """Let the next signal raise Interrupted(message), since nothing is left to save.

        With several processes it changes nothing: they finish together.
        """
        self._saved = message

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self.requested:
            _write("\n")  # below a line of progress
            os._exit(128 + number)
        self.requested = True
        if self._saved and self._alone:
            raise Interrupted(self._saved)
        if not self._alone:
            os.kill(os.getpid(), signal.SIGTERM)  # JAX passes it on to the other processes
        name = signal.Signals(number).name
        doing = "all is saved; finishing" if self._saved else "finishing the step and saving"
        _write(f"\nsupmim: {name}: {doing}; repeat it to exit at once\n")


def _write(message: str) -> None:
    with contextlib.suppress(OSError):  # nobody may read it any more
        os.write(sys.stderr.fileno(), message.encode())
