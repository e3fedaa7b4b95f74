"""The picture of images beside the principal components of their patch tokens."""

from pathlib import Path

import numpy as np

from supmim.report import figures

PAIRS, NARROWEST = 4, 5.4  # pairs in a row; inches that the title needs


def draw(path: Path, *, image: np.ndarray, colours: np.ndarray) -> None:
    """Draw images [n, S, S, C] and colours [n, grid, grid, 3] in [0, 1], PAIRS pairs a row."""
    rows, pairs = -(-len(image) // PAIRS), min(len(image), PAIRS)
    size = (max(2.7 * pairs, NARROWEST), 1.3 * rows + 0.5)
    figure, axes = figures.grid(size, rows, [1, 1, 0.15] * (pairs - 1) + [1, 1])
    for number, (picture, colour) in enumerate(zip(image, colours, strict=True)):
        row, left = number // PAIRS, 3 * (number % PAIRS)
        figures.show(axes[row, left], picture)
        figures.show(axes[row, left + 1], colour)
    figure.suptitle(
        "image | first three principal components of its patch tokens as red, green, blue",
        fontsize=10,
    )
    figures.save(figure, path)
