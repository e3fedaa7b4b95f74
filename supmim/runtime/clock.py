"""How a run spends its time: seconds and goodput shares, and images per second over a window."""

import contextlib
import time
from collections.abc import Iterator

from supmim.runtime import progress

KINDS = {  # kind -> its text in the line of progress; all other time is spent in steps
    "set_up": "setting up",
    "compile": "compiling the train step",
    "data_wait": "waiting for images",
    "evaluate": "evaluating",
    "draw": "drawing",
    "save": "saving",
}
SETTLED = 2.0  # seconds; a shorter window has no speed yet
PAUSES = ("compile", "evaluate", "draw", "save")  # not counted in images per second


class Clock:
    """Timer of a run from its start; `begin` ends its set-up and opens a window of steps."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self.spent: dict[str, float] = dict.fromkeys(KINDS, 0.0)  # seconds
        self.cpu: dict[str, float] = dict.fromkeys(KINDS, 0.0)  # seconds, of all threads
        self.kind = "set_up"  # of the time that is spent now; empty for steps
        self._start, self._cpu_start = time.monotonic(), time.process_time()

    def begin(self) -> None:
        """Count all the time until now as set-up."""
        self.kind = ""
        self.spent["set_up"] = time.monotonic() - self._start
        self.cpu["set_up"] = time.process_time() - self._cpu_start
        self._open_window()

    @contextlib.contextmanager
    def spending(self, kind: str) -> Iterator[None]:
        """Count the time inside as time of this kind, and show it on the line of progress."""
        began, cpu_began = time.monotonic(), time.process_time()
        self.kind = kind
        with progress.doing(KINDS[kind]):
            yield
        self.kind = ""
        self.spent[kind] += time.monotonic() - began
        self.cpu[kind] += time.process_time() - cpu_began

    def shares(self) -> dict[str, float]:
        """Return the share of the time since the start of each kind, as `goodput/KIND`."""
        total = max(time.monotonic() - self._start, 1e-9)
        shares = {f"goodput/{kind}": seconds / total for kind, seconds in self.spent.items()}
        return {"goodput/step": max(1 - sum(shares.values()), 0.0), **shares}

    def seconds(self) -> dict[str, float]:
        """Return the seconds of each kind, as `wall_seconds/KIND` and `cpu_seconds/KIND`.

        `cpu_seconds/start_up` is what the process used before the run.
        """
        wall, cpu = time.monotonic() - self._start, time.process_time() - self._cpu_start
        return {
            "wall_seconds/step": wall - sum(self.spent.values()),
            **{f"wall_seconds/{kind}": seconds for kind, seconds in self.spent.items()},
            "cpu_seconds/start_up": self._cpu_start,
            "cpu_seconds/step": cpu - sum(self.cpu.values()),
            **{f"cpu_seconds/{kind}": seconds for kind, seconds in self.cpu.items()},
        }

    def speed(self, steps: int, settled: float = SETTLED) -> dict[str, float]:
        """Return images per second and the share of waiting in the current window.

        It is empty if the window has no `steps`, or if it is shorter than `settled` seconds.
        """
        paused = sum(self.spent[kind] - self._window_spent[kind] for kind in PAUSES)
        seconds = max(time.monotonic() - self._window_start - paused, 1e-9)
        if not steps or seconds < settled:
            return {}
        waited = self.spent["data_wait"] - self._window_spent["data_wait"]
        return {
            "images_per_second": steps * self.batch_size / seconds,
            "data_wait": min(waited / seconds, 1.0),
        }

    def summary(self, steps: int) -> dict[str, float]:
        """Return the metrics of the current window, which has this many steps, and open another."""
        speed = self.speed(steps, settled=0.0)
        self._open_window()
        return {**speed, "compile_seconds": self.spent["compile"], **self.shares()}

    def _open_window(self) -> None:
        self._window_start, self._window_spent = time.monotonic(), dict(self.spent)
