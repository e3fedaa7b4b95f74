"""The picture of queries and their nearest training images, framed as right or wrong."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from supmim.report import figures

NEIGHBOURS = 5
STRIP, WIDTH = 10, 16  # images in a row of a strip; letters of a title


def draw(
    path: Path,
    *,
    query: np.ndarray,
    neighbours: np.ndarray,
    query_label: np.ndarray,
    neighbour_label: np.ndarray,
    class_names: Sequence[str],
) -> None:
    """Draw queries [n, H, W, C] and their neighbours [n, k, H, W, C]; labels [n] and [n, k]."""
    names = [figures.label(name) for name in class_names]
    rows, columns = neighbour_label.shape
    size = (1.25 * (columns + 1) + 0.8, 1.35 * rows + 0.5)
    figure, axes = figures.grid(size, rows, [1, 0.3] + [1] * columns)
    figure.suptitle(
        "query | nearest training images by cosine: green right, red wrong class", fontsize=10
    )
    for row, own in enumerate(query_label):
        figures.show(axes[row, 0], query[row], title=names[int(own)])
        for column, label in enumerate(neighbour_label[row]):
            frame = figures.GREEN if label == own else figures.RED
            axis, picture = axes[row, column + 2], neighbours[row, column]
            figures.show(axis, picture, frame, names[int(label)])
    figures.save(figure, path)


def strip(
    path: Path,
    *,
    query: np.ndarray,
    images: Sequence[np.ndarray | None],
    titles: Sequence[tuple[str, str]],
) -> None:
    """Draw a query [H, W, C] and what is near to it, best first, in rows of STRIP images.

    images: [H, W, C], or None where only the title is shown. titles: two lines for each.
    """
    columns, rows = min(len(images), STRIP), -(-len(images) // STRIP)
    size = (1.3 * (columns + 1) + 0.5, 1.75 * rows + 0.3)
    figure, axes = figures.grid(size, rows, [1, 0.2] + [1] * columns)
    figures.show(axes[0, 0], query, figures.BLUE, "query\n")
    for number, (image, lines) in enumerate(zip(images, titles, strict=True)):
        axis = axes[number // STRIP, number % STRIP + 2]
        if image is not None:
            figures.show(axis, image)
        axis.set_title("\n".join(figures.label(line, WIDTH) for line in lines), fontsize=8)
    figures.save(figure, path)
