"""How a run spends its time: goodput shares, and images per second over a window of steps."""

import contextlib
import time
from collections.abc import Iterator

KINDS = ("set_up", "compile", "data_wait", "evaluate", "save")  # the rest is the steps themselves
PAUSES = ("compile", "evaluate", "save")  # not counted in images per second


class Clock:
    """Times from the start of a run; `begin` ends its set-up and opens a window of steps."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self.spent: dict[str, float] = dict.fromkeys(KINDS, 0.0)  # seconds
        self._start = time.monotonic()

    def begin(self) -> None:
        """Count all the time until now as set-up."""
        self.spent["set_up"] = time.monotonic() - self._start
        self._open_window()

    @contextlib.contextmanager
    def spending(self, kind: str) -> Iterator[None]:
        """Count the time inside as time of this kind."""
        began = time.monotonic()
        yield
        self.spent[kind] += time.monotonic() - began

    def shares(self) -> dict[str, float]:
        """Return the share of the time since the start of each kind, as `goodput/KIND`."""
        total = max(time.monotonic() - self._start, 1e-9)
        shares = {f"goodput/{kind}": seconds / total for kind, seconds in self.spent.items()}
        return {"goodput/step": max(1 - sum(shares.values()), 0.0), **shares}

    def summary(self, steps: int) -> dict[str, float]:
        """Return the metrics of the current window, which has this many steps, and open another."""
        spent = {kind: self.spent[kind] - self._window_spent[kind] for kind in KINDS}
        paused = sum(spent[kind] for kind in PAUSES)
        seconds = max(time.monotonic() - self._window_start - paused, 1e-9)
        self._open_window()
        return {
            "images_per_second": steps * self.batch_size / seconds,
            "data_wait": min(spent["data_wait"] / seconds, 1.0),
            "compile_seconds": self.spent["compile"],
            **self.shares(),
        }

    def _open_window(self) -> None:
        self._window_start, self._window_spent = time.monotonic(), dict(self.spent)
