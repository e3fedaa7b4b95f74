"""The metrics of the training steps: merged over a window, then written and shown."""

from collections.abc import Callable

from supmim import metrics
from supmim.report.terminal import Terminal
from supmim.runtime.clock import Clock
from supmim.workdir.writer import NoWriter, Writer


class StepLog:
    """Log of the training metrics, with one line for every `every` steps and after the last step.

    A line of fewer steps, such as the last or the first after a restart, has their number as
    `steps_averaged`.
    """

    def __init__(
        self,
        every: int,
        total_steps: int,
        clock: Clock,
        learning_rate: Callable,
        writer: Writer | NoWriter,
        screen: Terminal,
    ) -> None:
        self.every, self.total_steps = every, total_steps
        self.clock, self.learning_rate = clock, learning_rate
        self.writer, self.screen = writer, screen
        self._window: list[tuple[metrics.Metrics, int]] = []  # of each call, and its steps
        self._finished: tuple[metrics.Metrics, int] = ({}, 0)

    def add(self, steps: range, totals: metrics.Metrics) -> None:
        """Take the metrics of a call, whose steps share a line; they are fetched when it is due.

        The last finished call is the previous one, since the caller has waited for it.
        """
        finished = sum(count for _, count in self._window)
        self._window.append((totals, len(steps)))
        self.screen.advance(steps, *self._finished, self.clock.speed(finished))
        self._finished = totals, len(steps)
        last = steps[-1]
        if last % self.every and last != self.total_steps:
            return
        done = [one for stacked, count in self._window for one in metrics.each(stacked, count)]
        scalars = metrics.summarize(done) | self.clock.summary(len(done))
        if len(done) < self.every:
            scalars["steps_averaged"] = len(done)
        scalars["learning_rate"] = float(self.learning_rate(last - 1))
        self.writer.write_scalars(last, scalars)
        self.screen.show_step(last, scalars)
        self._window = []
