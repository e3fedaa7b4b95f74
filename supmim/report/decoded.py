"""The picture of images and of what is made of them: a row each, a column per image."""

from pathlib import Path

import numpy as np

from supmim.report import figures

NARROWEST, TITLE = 4.0, 0.2  # inches: width for the name of a row, and height


def draw(path: Path, rows: dict[str, np.ndarray]) -> None:
    """Draw rows, name -> pictures [n, S, S, C] in [0, 1], with one column per image."""
    columns = len(next(iter(rows.values())))
    height = 1.4 * len(rows) + TITLE
    size = (max(1.25 * columns, NARROWEST), height)
    figure, axes = figures.grid(size, len(rows), [1] * columns)
    for line, (name, pictures) in zip(axes, rows.items(), strict=True):
        for axis, picture in zip(line, pictures, strict=True):
            figures.show(axis, picture)
        place = {"xycoords": "axes fraction", "textcoords": "offset points"}
        name = line[0].annotate(name, (0, 1), (0, 3), fontsize=9, **place)
        name.set_in_layout(False)  # or a long one would widen the first column
    figure.set_layout_engine("constrained", h_pad=TITLE / 2, rect=(0, 0, 1, 1 - TITLE / 2 / height))
    figures.save(figure, path)
