"""Deliberate faults, to test how a run reacts to them: SUPMIM_FAULT=KIND@PLACE:NUMBER[/PROCESS].

For example `stall@step:12/1`: process 1 of the run stops answering at step 12. Each happens once.

KIND   kill, stop, term or hup: that signal to the process; stall: the thread sleeps for ever;
       full: the disk refuses to write
PLACE  step: before this step; record: when this image is read; save: when this step is saved
"""

import errno
import functools
import os
import re
import signal
import sys
import time
from collections.abc import Container

from supmim.errors import ConfigError

VARIABLE = "SUPMIM_FAULT"
SIGNALS = {
    "kill": signal.SIGKILL,
    "stop": signal.SIGSTOP,
    "term": signal.SIGTERM,
    "hup": signal.SIGHUP,
}
KINDS, PLACES = (*SIGNALS, "stall", "full"), ("step", "record", "save")
FORM = re.compile(rf"({'|'.join(KINDS)})@({'|'.join(PLACES)}):([0-9]+)(?:/([0-9]+))?")


@functools.cache
def asked() -> tuple[str, str, int, int] | None:
    """Return the requested (kind, place, number, process or -1 for any); ConfigError if wrong."""
    text = os.environ.get(VARIABLE, "")
    if not text:
        return None
    found = FORM.fullmatch(text)
    if found is None:
        raise ConfigError(
            f"{VARIABLE}={text!r} is not KIND@PLACE:NUMBER, with {', '.join(KINDS)} at "
            f"{', '.join(PLACES)}, such as stall@step:12"
        )
    kind, place, number, process = found.groups()
    return kind, place, int(number), int(process or -1)


def reached(place: str, numbers: Container[int]) -> None:
    """Let the fault happen if it belongs to this place and to one of these numbers."""
    fault = asked()
    if fault is None or fault[1] != place or fault[2] not in numbers:
        return
    kind, _, number, process = fault
    if process >= 0 and process != _own_number():
        return
    over()
    print(f"supmim: {VARIABLE}: {kind} at {place} {number}", file=sys.stderr, flush=True)
    if kind == "full":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if kind == "stall":
        while True:
            time.sleep(60)
    os.kill(os.getpid(), SIGNALS[kind])


def over() -> None:
    """Forget the fault, so that it does not happen again in a reader process that is restarted."""
    os.environ.pop(VARIABLE, None)
    asked.cache_clear()


def _own_number() -> int:
    import jax

    return jax.process_index()
