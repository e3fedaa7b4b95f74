"""The rows: images and what some tokenizers give back of them."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from supmim.report import figures


def draw(path: Path, rows: dict[str, np.ndarray]) -> None:
    """rows: name -> [n, S, S, C] in [0, 1], one picture a column."""
    columns = len(next(iter(rows.values())))
    figure = Figure(figsize=(1.25 * columns, 1.4 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for line, (name, pictures) in zip(axes, rows.items(), strict=True):
        for axis, picture in zip(line, pictures, strict=True):
            figures.show(axis, picture)
        line[0].set_title(name, fontsize=9, loc="left")
    figures.save(figure, path)
