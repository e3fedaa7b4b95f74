"""Where numbers go: metrics.jsonl always, and TensorBoard events."""

import contextlib
import json
import math
from pathlib import Path

import jax
import numpy as np
import tensorboardX

from supmim.workdir.files import write_text


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
        for name, value in finite.items():
            if value is not None:
                self._events.add_scalar(name, value, step)

    def write_images(self, step: int, images: dict[str, np.ndarray]) -> None:
        """Images [n, H, W, C] as TensorBoard shows them."""
        for name, image in images.items():
            self._events.add_images(name, np.asarray(image), step, dataformats="NHWC")

    def flush(self) -> None:
        """Everything written so far is on disk."""
        self._events.flush()

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_: object) -> None:
        """Ends both files."""
        self._jsonl.close()
        self._events.close()


class NoWriter(contextlib.nullcontext):
    """What the other processes of a run write: nothing."""

    def __enter__(self) -> "NoWriter":
        return self

    def write_scalars(self, step: int, scalars: dict[str, float]) -> None:
        """See Writer."""

    def flush(self) -> None:
        """See Writer."""


def open_writer(workdir: Path, step: int) -> Writer | NoWriter:
    """The first process writes, for all."""
    return Writer(workdir, step) if jax.process_index() == 0 else NoWriter()


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The lines of a metrics.jsonl; a last line that a kill cut short is left out.

    Of the same metrics at the same step, which an evaluation that a kill cut short leaves, the last
    are taken.
    """
    rows = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        rows[row["step"], *sorted(row)] = row
    return list(rows.values())


def _keep_until(path: Path, step: int) -> None:
    """Drops the lines after `step`: the run writes them again."""
    kept = [json.dumps(row) + "\n" for row in read_metrics(path) if row["step"] <= step]
    write_text(path, "".join(kept))
