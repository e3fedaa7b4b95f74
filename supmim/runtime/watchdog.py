"""A thread that says what a run waits for, and ends it when nothing has moved for too long.

Each process tells the others its step and what it does (see life.py), so that the watchdog can name
the process that keeps the others waiting.
"""

import contextlib
import faulthandler
import os
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Callable

import jax

from supmim.errors import StallError
from supmim.runtime import progress
from supmim.runtime.life import LIFE

STEP = "step"  # the note of a process that does nothing but steps
LINE = 60.0  # seconds without a step between two lines
STEPS = 10  # a step may take this many times the median
SLOW_KINDS = 20  # compiling, evaluating and saving may take this many times longer than steps
PAUSED = 10.0  # a longer gap, in seconds, between two looks: the process itself was suspended
WHAT = {
    "": "the next step",
    "set_up": "the set-up",
    "data_wait": "images",
    "compile": "the compiler",
    "evaluate": "the evaluation",
    "draw": "the pictures",
    "save": "a save",
}
EXIT_DELAY = 10.0  # seconds for the others to end in the same way, before process 0 ends


class Watchdog:
    """Watch over a run, from `with Watchdog(...) as watchdog`; call `step_done` after each step.

    Other work moves if the line of progress does. minutes: time without a move before the run ends;
    0 only writes lines. doing: returns what the main thread does, "" for steps, else a kind of time
    of runtime.clock. log: receives the lines.
    """

    def __init__(
        self, minutes: float, doing: Callable[[], str], log: Callable[[str], None]
    ) -> None:
        self.minutes, self.doing, self.log = minutes, doing, log
        self._step, self._at, self._kind = 0, 0, ""
        self._position: object = None
        self._moved = time.monotonic()
        self._seconds: deque[float] = deque(maxlen=101)  # between two calls
        self._begun, self._over = False, threading.Event()

    def __enter__(self) -> "Watchdog":
        self._moved = time.monotonic()
        threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def start(self, step: int) -> None:
        """Note that the run is set up, and how many steps are done."""
        self._step = self._at = step
        self._moved = time.monotonic()

    def step_begins(self, step: int) -> None:
        """Note that the run gives this step to the devices."""
        self._at = step

    def step_done(self, step: int) -> None:
        """Note that the run has finished this step."""
        now = time.monotonic()
        if self._begun:  # the first one includes compilation
            self._seconds.append(now - self._moved)
        self._step, self._moved, self._begun = step, now, True

    def limit(self, kind: str) -> float:
        """Return the seconds that may pass without a move: more while a process does slow work."""
        usual = STEPS * statistics.median(self._seconds) if self._seconds else 0.0
        notes = [note for note, _ in LIFE.others().values() if note[:1].isdecimal()]
        kinds = {kind or STEP, *(note.partition(" ")[2] for note in notes)}
        return (SLOW_KINDS if kinds - {STEP, "data_wait"} else 1) * max(usual, 60 * self.minutes)

    def _watch(self) -> None:
        lines, last = 0, time.monotonic()
        while not self._over.wait(1.0):
            now, kind, position = time.monotonic(), self.doing(), progress.position()
            if now - last > PAUSED:  # the process was suspended
                self._moved += now - last
            last = now
            if (kind, position) != (self._kind, self._position):
                self._kind, self._position, self._moved = kind, position, now
            LIFE.note = f"{self._at} {kind or STEP}"
            waited = now - self._moved
            if waited < LINE:
                lines = 0
            elif waited >= (lines + 1) * LINE:
                lines += 1
                self.log(f"waiting     {self.situation(waited)}")
            if self.minutes and waited >= self.limit(kind):
                self.end(waited)

    def situation(self, waited: float) -> str:
        """Return what is waited for, for how long, and which process is late."""
        told = f"for {WHAT.get(self._kind, self._kind)}, {waited:.0f} s after step {self._step:,}"
        late = late_ones({name: note for name, (note, _) in LIFE.others().items()})
        return f"{told}; late: {late}" if late else told

    def end(self, waited: float) -> None:
        """End the process with the stacks of its threads: no exception reaches a stuck thread."""
        error = StallError(
            f"waited in vain {self.situation(waited)}. The lines above show what each thread was "
            "doing. Start the run again: it continues from its newest checkpoint. "
            "config.runtime.stall_minutes sets how long it may wait",
            fault="R6",
        )
        with contextlib.suppress(OSError, ValueError):
            faulthandler.dump_traceback(sys.stderr, all_threads=True)
            print(f"supmim: {error}", file=sys.stderr, flush=True)
        several, first = bool(LIFE.others()), jax.process_index() == 0
        if several and not first:  # keep its note until the others have come to the same end
            time.sleep(EXIT_DELAY / 2)
        LIFE.end(error.exit_code)
        if several and first:
            time.sleep(EXIT_DELAY)
        os._exit(error.exit_code)


def late_ones(notes: dict[str, str]) -> str:
    """Return which processes keep the others waiting: name -> `STEP KIND`, as they were told.

    They are those at the lowest step or, if all are at the same step, those that do other work than
    steps. Empty if all do the same.
    """
    at = {name: note.split(" ", 1) for name, note in notes.items() if note[:1].isdecimal()}
    steps = {name: int(step) for name, (step, _) in at.items()}
    late = [name for name in at if steps[name] < max(steps.values())]
    late = late or [name for name in at if at[name][1] != STEP]
    if len(late) == len(at):
        return ""
    return ", ".join(f"{name} ({at[name][1]}, step {steps[name]:,})" for name in late)
