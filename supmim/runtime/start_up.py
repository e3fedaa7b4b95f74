"""Signals while a command starts and has nothing to save: it ends at once, with a plain message.

An exception would not do: modules in C turn it into an ImportError while they are imported.
"""

import os
import signal
import sys

INTERRUPTED = 75  # the exit code of errors.Interrupted
DEFAULTS = {
    signal.SIGINT: signal.default_int_handler,
    signal.SIGTERM: signal.SIG_DFL,
    signal.SIGHUP: signal.SIG_DFL,
}


def begin() -> None:
    """End the process at the next signal, unless its caller ignores that signal."""
    for number, default in DEFAULTS.items():
        if signal.getsignal(number) == default:
            signal.signal(number, _end)


def over() -> None:
    """Restore Python's own handlers."""
    for number, default in DEFAULTS.items():
        if signal.getsignal(number) == _end:
            signal.signal(number, default)


def deadly() -> None:
    """Let signals kill the process: while C++ code waits, no handler in Python can run."""
    for number in DEFAULTS:
        if signal.getsignal(number) == _end:
            signal.signal(number, signal.SIG_DFL)


def _end(number: int, _: object) -> None:
    name = signal.Signals(number).name
    os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"supmim: {name}: ended\n".encode())
    os._exit(INTERRUPTED)
