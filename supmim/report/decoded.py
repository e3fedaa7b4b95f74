"""The picture of images and their reconstructions by tokenizers, one row each."""

from pathlib import Path

import numpy as np

from supmim.report import figures


def draw(path: Path, rows: dict[str, np.ndarray]) -> None:
    """Draw rows, name -> pictures [n, S, S, C] in [0, 1], with one column per image."""
    columns = len(next(iter(rows.values())))
    size = (1.25 * columns, 1.4 * len(rows))
    figure, axes = figures.grid(size, len(rows), [1] * columns)
    for line, (name, pictures) in zip(axes, rows.items(), strict=True):
        for axis, picture in zip(line, pictures, strict=True):
            figures.show(axis, picture)
        line[0].set_title(name, fontsize=9, loc="left")
    figures.save(figure, path)
