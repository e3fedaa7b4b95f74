"""Where numbers go: metrics.jsonl always, TensorBoard events, and lines for people."""

import json
import math
import os
import sys
import time
from pathlib import Path

import numpy as np
import tensorboardX
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


class Writer:
    """Metric files of a workdir, with clu's method names; what lies after `step` is dropped."""

    def __init__(self, workdir: Path, step: int) -> None:
        path = workdir / "metrics.jsonl"
        _keep_until(path, step)
        self._jsonl = path.open("a", encoding="utf-8")
        self._events = tensorboardX.SummaryWriter(
            str(workdir), purge_step=step + 1 if step else None, write_to_disk=True
        )

    def write_scalars(self, step: int, scalars: dict[str, float]) -> None:
        """One JSON object a line; a value that is not finite becomes null."""
        finite = {k: float(v) if math.isfinite(v) else None for k, v in scalars.items()}
        self._jsonl.write(json.dumps({"step": step, **finite}) + "\n")
        self._jsonl.flush()
        for name, value in scalars.items():
            self._events.add_scalar(name, value, step)

    def write_images(self, step: int, images: dict[str, np.ndarray]) -> None:
        """Images [n, H, W, C] as TensorBoard shows them."""
        for name, image in images.items():
            self._events.add_images(name, np.asarray(image), step, dataformats="NHWC")

    def flush(self) -> None:
        """Everything written so far is on disk."""
        self._events.flush()

    def close(self) -> None:
        """Ends both files."""
        self._jsonl.close()
        self._events.close()


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The lines of a metrics.jsonl; a last line that a kill cut short is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def _keep_until(path: Path, step: int) -> None:
    """Drops the lines after `step`: the run writes them again."""
    kept = [json.dumps(row) + "\n" for row in read_metrics(path) if row["step"] <= step]
    part = path.with_name(path.name + ".part")
    part.write_text("".join(kept), encoding="utf-8")
    os.replace(part, path)


class Terminal:
    """One progress line on a terminal, plain lines elsewhere."""

    def __init__(self, total_steps: int, start: int) -> None:
        self.console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
        self.total_steps = total_steps
        self._began, self._start = time.monotonic(), start
        self._progress = Progress(
            TextColumn("{task.completed}/{task.total}"), BarColumn(bar_width=16),
            TextColumn("{task.description}"), TimeRemainingColumn(compact=True),
            console=self.console, disable=not self.console.is_terminal,
        )  # fmt: skip
        self._bar = self._progress.add_task("", total=total_steps, completed=start)

    def __enter__(self) -> "Terminal":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def tell(self, message: str) -> None:
        """A message that stays."""
        self.console.print(message, markup=False)

    def show_step(self, step: int, scalars: dict[str, float]) -> None:
        """Where the training stands, from the metrics of the last steps."""
        parts = [
            f"{short} {scalars[name]:{form}}"
            for name, short, form in (
                ("class_loss", "class", ".3f"), ("mim_loss", "mim", ".3f"),
                ("train_top1", "top1", ".1%"), ("token_accuracy", "tokens", ".1%"),
                ("images_per_second", "img/s", ".0f"), ("data_wait", "wait", ".0%"),
            )
            if name in scalars
        ]  # fmt: skip
        line = "  ".join(parts)
        self._progress.update(self._bar, completed=step, description=line)
        if not self.console.is_terminal:
            left = (time.monotonic() - self._began) / max(step - self._start, 1)
            left *= self.total_steps - step
            self.tell(f"step {step}/{self.total_steps}  {line}  left {left:.0f} s")
