"""One line for the whole program, which says what is being done and for how long.

A terminal shows it anew twice a second. Elsewhere it is printed after a minute without output.
"""

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator

from rich.console import Console

from supmim.runtime import streams

REFRESH = 0.5  # seconds between two updates of the line
SILENCE = 60.0  # seconds without any line, after which one is printed if there is no terminal
SHORTEST = 0.5  # seconds that a phase lasts before it is shown
UNKNOWN = 60.0  # seconds for which the time left may stay unknown once the work has begun


class Phase:
    """A stretch of work: `what` it is and, if it can be counted, how much is `done` of `total`.

    details: returns what is shown beside the count on a terminal, for the width that is left.
    """

    def __init__(self, what: str, total: int = 0, done: int = 0) -> None:
        self.details: Callable[[int], str] | None = None
        self.restart(what, total, done)

    def restart(self, what: str, total: int = 0, done: int = 0) -> None:
        """Turn this into another phase, which begins now."""
        self.what, self.total, self.done = what, total, done
        self.began = self._last = time.monotonic()
        self._started = 0
        self._first, self._first_done = self.began, done

    def advance(self, count: int = 1) -> None:
        """Add to what is done, up to the total: the last batch may be padded."""
        self.done, self._last = min(self.done + count, self.total), time.monotonic()

    def measure(self, started: int) -> None:
        """Estimate the time left from here on. started: how much of the rest is being worked on."""
        self._first, self._first_done, self._started = time.monotonic(), self.done, started

    def left(self, now: float) -> str:
        """Return the time left, such as "left 3m"; "" while it is unknown."""
        seconds = self.seconds_left(now)
        return "" if seconds is None else f"left {brief(seconds)}"

    def seconds_left(self, now: float) -> float | None:
        if finished := self.done - self._first_done:
            each = (self._last - self._first) / finished
            return max(each * (self.total - self.done) - min(now - self._last, each), 0.0)
        waited = now - self._first
        if self._started and waited >= UNKNOWN:  # each takes at least that long
            return waited / self._started * (self.total - self.done)
        return None

    def count(self) -> str:
        """Return how much is done, such as "120/400 30%"; "" if it cannot be counted."""
        share = 100 * self.done // max(self.total, 1)
        return f"{self.done}/{self.total} {share}%" if self.total else ""


class Line:
    """The line of a console; `text` is what it shows of its phases, the innermost of which is last.

    base: the outermost phase, for as long as the line is open; its count stays on the terminal at
    the end. shown: whether anything but messages is printed.
    """

    def __init__(self, console: Console, base: Phase | None = None, shown: bool = True) -> None:
        self.console, self.base = console, base
        self.phases = [base] if base else []
        self._shown = shown and not console.quiet
        self._live: streams.Live | None = None
        self._closed = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="progress", daemon=True)
        self._printed = time.monotonic()

    @property
    def moves(self) -> bool:
        """Whether this is a line on a terminal."""
        return self._live is not None

    def __enter__(self) -> "Line":
        if self._shown:
            if self.console.is_interactive:
                self._live = streams.Live(self.console, self.text)
                self._live.start()
            self._watcher.start()
        _open.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        _open.remove(self)
        self._closed.set()
        if self._shown:
            self._watcher.join()
        if self._live is not None:
            self._live.transient = not (self.base and self.base.total)
            self._live.stop()

    def _watch(self) -> None:
        while not self._closed.wait(REFRESH):
            self.tick()

    def tick(self) -> None:
        """Draw the line again or, without a terminal, print it after a minute of silence."""
        if self._live is not None:
            self._live.refresh()
        elif self._shown and time.monotonic() - self._printed >= SILENCE and (text := self.text()):
            self.log(text)

    def log(self, message: str) -> None:
        """Print a message that stays, above the line."""
        self._printed = time.monotonic()
        self.console.print(message, markup=False)

    def text(self, width: int = 0) -> str:
        """Return the line, cut to a width if one is given, without phases that have just begun."""
        now = time.monotonic()
        shown = [phase for phase in tuple(self.phases) if now - phase.began >= SHORTEST]
        if not shown:
            return ""
        inner, count = shown[-1], self.base.count() if self.base else ""
        left = inner.left(now)
        if inner.details is not None and width:
            room = width - len(count) - len(left) - 2
            return _joined(count, inner.details(room), left)
        own = inner.count() if inner is not self.base else ""
        end = _joined(own, elapsed(now - inner.began), left)
        named = (shown[1:] if count else []) or shown
        names = streams.printable(": ".join(phase.what for phase in named))
        room = width - len(count) - len(end) - 2
        if width and len(names) > room:
            names = names[: max(room - 3, 0)] + "..."
        return _joined(count, names, end)


_open: list[Line] = []  # the last one shows what is being done


@contextlib.contextmanager
def doing(
    what: str, total: int = 0, done: int = 0, *, shown: bool = True
) -> Iterator[Callable[[int], None]]:
    """Show the work that is done inside, and yield a function that reports progress.

    It is shown on the open line. If none is open, a line on stderr is opened and finally removed.
    shown: False to leave that line empty, also for work that is done within this work.
    """
    quiet = _mute() or not shown
    own = contextlib.nullcontext(_open[-1]) if _open else Line(streams.Console(True, quiet=quiet))
    with own as line:
        phase = Phase(what, total, done)
        line.phases.append(phase)
        try:
            yield phase.advance
        finally:
            line.phases.remove(phase)


def position() -> object:
    """Return a value that changes as soon as the work makes progress."""
    return [(phase.what, phase.done) for line in tuple(_open) for phase in tuple(line.phases)]


def tell(message: str) -> None:
    """Print a message that stays, above the line if one is open."""
    (_open[-1].log if _open else print)(message)


def _mute() -> bool:
    """Whether another process of this run shows its line; JAX is asked only if it is in use."""
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized() and jax.process_index() != 0


def _joined(*parts: str) -> str:
    return " ".join(filter(None, parts))


def brief(seconds: float) -> str:
    """Return at most two digits and a unit: 99s, 3m, 99h, 4d."""
    for size, unit in ((1, "s"), (60, "m"), (3600, "h")):
        if seconds < 100 * size:
            return f"{seconds // size:.0f}{unit}"
    return f"{seconds // 86400:.0f}d"


def elapsed(seconds: float) -> str:
    """Return minutes and seconds, such as 0:12, with hours from one hour on."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
