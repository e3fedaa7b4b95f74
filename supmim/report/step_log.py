"""The metrics of the training steps: merged over a window, then written and shown."""

from collections.abc import Callable

from supmim import metrics
from supmim.report.terminal import Terminal
from supmim.runtime.clock import Clock
from supmim.workdir.writer import NoWriter, Writer


class StepLog:
    """Log of the training metrics, with one line for every `every` steps.

    After a restart between two lines, the first has fewer: it says how many, as `steps_averaged`.
    """

    def __init__(
        self,
        every: int,
        clock: Clock,
        learning_rate: Callable,
        writer: Writer | NoWriter,
        screen: Terminal,
    ) -> None:
        self.every, self.clock, self.learning_rate = every, clock, learning_rate
        self.writer, self.screen = writer, screen
        self._window: list[metrics.Metrics] = []
        self._finished: metrics.Metrics = {}

    def add(self, step: int, totals: metrics.Metrics) -> None:
        """Take the metrics of a step; nothing is fetched from the devices before a line is due.

        The previous step, which the caller has waited for, is the last one that is finished.
        """
        self._window.append(totals)
        speed = self.clock.speed(len(self._window) - 1)
        self.screen.advance(step, self._finished, speed)
        self._finished = totals
        if step % self.every:
            return
        scalars = metrics.summarize(self._window) | self.clock.summary(len(self._window))
        if len(self._window) < self.every:
            scalars["steps_averaged"] = len(self._window)
        scalars["learning_rate"] = float(self.learning_rate(step - 1))
        self.writer.write_scalars(step, scalars)
        self.screen.show_step(step, scalars)
        self._window = []
