"""Writers of metrics to metrics.jsonl and TensorBoard."""

import contextlib
import json
import math
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import tensorboardX
from tensorboardX.record_writer import register_writer_factory

from supmim.storage.growing import Growing
from supmim.workdir.files import read_json_lines, write_text
from supmim.workdir.patient import PatientFile, PatientFiles

METRICS = "metrics.jsonl"


class Writer:
    """The metric files of a workdir, with clu's method names; lines after `step` are dropped.

    log: receives a message if the disk refuses them for a while.
    """

    def __init__(self, workdir: Path, step: int, log: Callable[[str], None] = print) -> None:
        path = workdir / METRICS
        _keep_until(path, step)
        self._jsonl = PatientFile(path, log)
        register_writer_factory(PatientFiles.PREFIX, PatientFiles(log))
        self._events = tensorboardX.SummaryWriter(
            f"{PatientFiles.PREFIX}:{workdir}",
            purge_step=step + 1 if step else None,
            write_to_disk=True,
        )

    def write_scalars(self, step: int, scalars: dict[str, float]) -> None:
        """Write one line of JSON; a value that is not finite becomes null."""
        finite = {k: float(v) if math.isfinite(v) else None for k, v in scalars.items()}
        self._jsonl.write(json.dumps({"step": step, **finite}).encode() + b"\n")
        self._jsonl.flush()
        for name, value in finite.items():
            if value is not None:
                self._events.add_scalar(name, value, step)

    def write_images(self, step: int, images: dict[str, np.ndarray]) -> None:
        """Write images [n, H, W, C] for TensorBoard."""
        for name, image in images.items():
            self._events.add_images(name, np.asarray(image), step, dataformats="NHWC")

    def flush(self) -> None:
        """Flush everything written so far to the disk."""
        self._events.flush()

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_: object) -> None:
        self._jsonl.close()
        self._events.close()


class NoWriter(contextlib.nullcontext):
    """The writer of all processes but the first, which writes nothing."""

    def __enter__(self) -> "NoWriter":
        return self

    def write_scalars(self, step: int, scalars: dict[str, float]) -> None:
        pass

    def write_images(self, step: int, images: dict[str, np.ndarray]) -> None:
        pass

    def flush(self) -> None:
        pass


def open_writer(growing: Growing, step: int, log: Callable[[str], None]) -> Writer | NoWriter:
    """Return a writer that writes on the first process only."""
    if jax.process_index():
        return NoWriter()
    return Writer(growing.file(METRICS).parent, step, log)


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Return the lines of a metrics.jsonl; see files.read_json_lines.

    An evaluation that was killed and repeated leaves the same metrics at the same step twice; the
    last ones count.
    """
    rows = {}
    for row in read_json_lines(path):
        if "step" in row:
            rows[row["step"], *sorted(row)] = row
    return list(rows.values())


def _keep_until(path: Path, step: int) -> None:
    """Drop the lines after `step`, which the run writes again."""
    kept = [json.dumps(row) + "\n" for row in read_metrics(path) if row["step"] <= step]
    write_text(path, "".join(kept))
