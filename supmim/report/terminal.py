"""Terminal output: the plan before the first step, progress, the table of results."""

import textwrap
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from supmim import metrics
from supmim.config import Config
from supmim.data.sources import joined
from supmim.data.sources.base import Source, printable
from supmim.errors import counted
from supmim.report import page, units
from supmim.runtime import streams
from supmim.runtime.progress import Line, Phase

Columns = Sequence[tuple[str, str, str]]  # metric, short name, format
SPEED = (("images_per_second", "img/s", ".0f"), ("data_wait", "wait", ".0%"))
Progress = Callable[[int, int, dict[str, float]], None]  # (step, steps in all, metrics)
BFLOAT16 = "bfloat16 is slow on a CPU: --config.encoder.dtype=float32 is faster"
GROUPS = ("encoder", "quantizer", "classifier", "decoder", "discriminator", "segmentation")


class Terminal:
    """Messages and one line of progress on a terminal; elsewhere plain lines, as StepLog has them.

    progress: called with the metrics of the last steps instead of showing any progress.
    """

    def __init__(self, progress: Progress | None = None) -> None:
        self.callback = progress
        self.columns: Columns = ()
        self.steps = Phase("setting up")
        console = streams.Console(quiet=jax.process_index() != 0)
        self.line = Line(console, self.steps, shown=progress is None)
        self.log = self.line.log
        self._scalars: dict[str, float] = {}
        self._finished: tuple[metrics.Metrics, int] = ({}, 0)

    def __enter__(self) -> "Terminal":
        self.line.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.line.__exit__()

    def begin(self, columns: Columns, total_steps: int, start: int) -> None:
        """Show the steps from here on; start: steps that are already done."""
        self.columns = columns
        self.steps.restart("the first step", total_steps, start)

    def compiled(self, seconds: float) -> None:
        """Log that the step is compiled."""
        self.log(f"compiled    the train step, in {seconds:.1f} s")

    def advance(
        self, steps: range, finished: metrics.Metrics, count: int, speed: dict[str, float]
    ) -> None:
        """Show that a call has begun. finished: metrics of the last finished one, of `count` steps.

        It costs a few microseconds: another thread draws the line.
        """
        self.steps.advance(steps[-1] - self.steps.done)
        if self.steps.details is None:
            self.steps.what, self.steps.details = "training", self._details
            self.steps.measure(started=len(steps))
        self._scalars, self._finished = self._scalars | speed, (finished, count)

    def show_step(self, step: int, scalars: dict[str, float]) -> None:
        """Show the metrics of the last steps, as a line of its own if there is no terminal."""
        if self.callback is not None:
            self.callback(step, self.steps.total, scalars)
            return
        self._scalars, self._finished = scalars, ({}, 0)
        if not self.line.moves:
            left = self.steps.left(time.monotonic())
            self.log(f"{step}/{self.steps.total} {self._details(0)} {left}".rstrip())

    def _details(self, width: int) -> str:
        """Return the metrics, leaving out the last ones until the rest fits a width."""
        losses = [name for name, _, _ in self.columns if name.endswith("_loss")]
        scalars = self._scalars | metrics.ready(*self._finished, losses)
        shown, speed = (_formatted(columns, scalars) for columns in (self.columns, SPEED))
        while width and shown and len(" ".join(shown + speed)) > width:
            shown.pop()
        return " ".join(shown + speed)


def _formatted(columns: Columns, scalars: dict[str, float]) -> list[str]:
    return [f"{short} {scalars[name]:{form}}" for name, short, form in columns if name in scalars]


def plan(
    config: Config,
    workdir: Path,
    params: Any,
    mesh: jax.sharding.Mesh,
    source: Source,
    start: int,
    total_steps: int,
) -> str:
    """Return a description of the run, to be shown before anything is compiled."""
    parts = ", ".join(
        f"{name} {sum(leaf.size for leaf in jax.tree.leaves(params[name])):,}"
        for name in GROUPS
        if name in params
    )
    axes = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    began = f"continues from step {start:,}" if start else "from the start"
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    slow = on_cpu and config.encoder.dtype == "bfloat16" and config.task != "tokenizer"
    labelled = joined.labelled(source)
    images = f"{len(labelled):,} of {printable(source.name)}, {config.batch_size:,} a step"
    if isinstance(source, joined.Joined):
        others = source.unlabelled
        images += f"\nunlabelled  {len(others):,} of {printable(others.name)}, "
        images += f"{config.unlabelled_rows:,} a step"
    return (
        f"devices     {mesh.devices.size} x {mesh.devices.flat[0].device_kind} ({axes})\n"
        f"parameters  {parts}\n"
        f"images      {images}\n"
        f"steps       {total_steps:,} ({counted(config.num_epochs(len(labelled)), 'epoch')}), "
        f"{began}\n"
        f"workdir     {workdir}"
    ) + (f"\nwarning     {BFLOAT16}" if slow else "")


def print_results(results: dict[str, float], headline: str) -> None:
    """Print the results on the first process; those of single classes are in the report only."""
    shown = {name: value for name, value in results.items() if name.count("/") < 2}
    lines = [f"  {name:<36}{text:>10}" for name, text in units.formatted(shown).items()]
    if low := page.not_above_floors(results):
        told = f"no better than without training (floor/...): {', '.join(low)}"
        lines.append(textwrap.fill(told, 80, subsequent_indent="  ", break_on_hyphens=False))
    if jax.process_index() == 0:
        print("\n".join([headline, *lines]))
