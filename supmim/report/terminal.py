"""Terminal output: the plan before the first step, progress, the table of results."""

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn

from supmim.config import Config
from supmim.data.sources.base import Source, printable
from supmim.errors import counted
from supmim.report import page
from supmim.runtime import streams

Columns = Sequence[tuple[str, str, str]]  # metric, short name, format
SPEED = (("images_per_second", "img/s", ".0f"), ("data_wait", "wait", ".0%"))
Progress = Callable[[int, int, dict[str, float]], None]  # (step, steps in all, metrics)
GROUPS = ("encoder", "quantizer", "classifier", "decoder", "discriminator", "segmentation")


class Terminal:
    """Messages and, from `begin` on, one progress line on a terminal, plain lines elsewhere.

    progress: called with the metrics of the last steps instead of showing them.
    """

    def __init__(self, progress: Progress | None = None) -> None:
        self.callback = progress
        self.console = streams.Console(
            highlight=False, soft_wrap=not sys.stdout.isatty(), quiet=jax.process_index() != 0
        )
        self.columns: Columns = ()
        self.total_steps = self.start = 0
        self._began = time.monotonic()
        self._progress = streams.Progress(
            TextColumn("{task.completed}/{task.total}"),
            BarColumn(bar_width=8),
            TextColumn("{task.description}"),
            TimeRemainingColumn(compact=True),
            console=self.console,
            disable=progress is not None or not self.console.is_terminal,
        )
        self._bar = self._progress.add_task("compiling the train step", visible=False)

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def begin(self, columns: Columns, total_steps: int, start: int) -> None:
        """Show the progress from here on; start: steps that are already done."""
        self.columns, self.total_steps, self.start = (*columns, *SPEED), total_steps, start
        self._progress.update(self._bar, total=total_steps, completed=start, visible=True)
        self._progress.start()

    def log(self, message: str) -> None:
        """Print a message that stays."""
        self.console.print(message, markup=False)

    def compiled(self, seconds: float) -> None:
        """Log that the step is compiled; the time left is estimated from here on."""
        self._began = time.monotonic()
        self.log(f"compiled    the train step, in {seconds:.1f} s")

    def show_step(self, step: int, scalars: dict[str, float]) -> None:
        """Show the progress with the metrics of the last steps."""
        if self.callback is not None:
            self.callback(step, self.total_steps, scalars)
            return
        line = " ".join(
            f"{short} {scalars[name]:{form}}"
            for name, short, form in self.columns
            if name in scalars
        )
        self._progress.update(self._bar, completed=step, description=line)
        if not self.console.is_terminal:
            seconds = (time.monotonic() - self._began) / max(step - self.start, 1)
            left = seconds * (self.total_steps - step)
            self.log(f"{step}/{self.total_steps} {line} left {brief(left)}")


def brief(seconds: float) -> str:
    """Return at most two digits and a unit: 99s, 3m, 99h, 4d."""
    for size, unit in ((1, "s"), (60, "m"), (3600, "h")):
        if seconds < 100 * size:
            return f"{seconds // size:.0f}{unit}"
    return f"{seconds // 86400:.0f}d"


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
    return (
        f"devices     {mesh.devices.size} x {mesh.devices.flat[0].device_kind} ({axes})\n"
        f"parameters  {parts}\n"
        f"images      {len(source):,} of {printable(source.name)}, {config.batch_size:,} a step\n"
        f"steps       {total_steps:,} ({counted(config.total_epochs, 'epoch')}), {began}\n"
        f"workdir     {workdir}"
    )


def print_results(results: dict[str, float], headline: str) -> None:
    """Print the results on the first process; those of single classes are in the report only."""
    shown = {name: value for name, value in results.items() if name.count("/") < 2}
    lines = [f"  {name:<36}{text:>10}" for name, text in page.formatted(shown).items()]
    if jax.process_index() == 0:
        print("\n".join([headline, *lines]))
