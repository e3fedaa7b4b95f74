"""The picture of images beside the principal components of their patch tokens."""

from pathlib import Path

import numpy as np

from supmim.report import figures


def draw(path: Path, *, image: np.ndarray, colours: np.ndarray) -> None:
    """Draw images [n, S, S, C] and colours [n, grid, grid, 3] in [0, 1], two pairs a row."""
    rows = (len(image) + 1) // 2
    figure, axes = figures.grid((8.4, 2.05 * rows + 0.5), rows, [1, 1, 0.25, 1, 1])
    for number, (picture, colour) in enumerate(zip(image, colours, strict=True)):
        left = 3 * (number % 2)
        figures.show(axes[number // 2, left], picture)
        figures.show(axes[number // 2, left + 1], colour)
    figure.suptitle(
        "image | first three principal components of its patch tokens as red, green, blue",
        fontsize=10,
    )
    figures.save(figure, path)
