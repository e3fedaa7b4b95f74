"""Speed of the loop: images per second, the share of time spent waiting, compile time apart."""

import contextlib
import time
from collections.abc import Iterator


class Clock:
    """Measures windows of steps; evaluation, saving and compiling are left out."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size, self.compile_seconds = batch_size, 0.0
        self._began, self._waited = time.monotonic(), 0.0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Time within counts as waiting for data."""
        began = time.monotonic()
        yield
        self._waited += time.monotonic() - began

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Time within does not count at all."""
        began = time.monotonic()
        yield
        self._began += time.monotonic() - began

    @contextlib.contextmanager
    def compiling(self) -> Iterator[None]:
        """Time within is the compile time; a window starts after it."""
        began = time.monotonic()
        yield
        self.compile_seconds = time.monotonic() - began
        self._began, self._waited = time.monotonic(), 0.0

    def summary(self, steps: int) -> dict[str, float]:
        """Metrics of the window of so many steps, which ends here."""
        seconds = max(time.monotonic() - self._began, 1e-9)
        scalars = {
            "images_per_second": steps * self.batch_size / seconds,
            "data_wait": min(self._waited / seconds, 1.0),
            "compile_seconds": self.compile_seconds,
        }
        self._began, self._waited = time.monotonic(), 0.0
        return scalars
