"""SIGTERM and Ctrl-C: the first asks the run to save and stop, the second ends it at once."""

import os
import signal
import sys
from types import FrameType


class StopSignal:
    """Within `with StopSignal() as stop`, `stop.requested` tells whether a signal came."""

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "StopSignal":
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self.requested:
            os._exit(128 + number)
        self.requested = True
        name = signal.Signals(number).name
        os.write(
            sys.stderr.fileno(),
            f"\nsupmim: {name}: finishing the step and saving; again to exit at once\n".encode(),
        )
