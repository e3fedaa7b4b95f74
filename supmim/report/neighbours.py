"""The picture of queries and their nearest training images, framed as right or wrong."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from supmim.report import figures

NEIGHBOURS = 5
RIGHT, WRONG = "✓", "✗"  # beside green and red, for those who see no difference
NARROWEST = 5.2  # inches that the title needs
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
    names = [figures.label(name, 12) for name in class_names]
    count, found = neighbour_label.shape
    blocks = min(count, 2)
    rows, width = -(-count // blocks), found + 2
    ratios = [1, 0.15, *[1] * found]
    size = (max(0.95 * (found + 1.3) * blocks + 0.5, NARROWEST), 1.15 * rows + 0.4)
    figure, axes = figures.grid(size, rows, ratios + [0.3, *ratios] * (blocks - 1))
    title = f"query | nearest training images by cosine: {RIGHT} right, {WRONG} wrong class"
    figure.suptitle(title, fontsize=10)
    for number, own in enumerate(query_label):
        line = axes[number % rows, (number // rows) * (width + 1) :]
        figures.show(line[0], query[number])
        line[0].set_title(names[int(own)], fontsize=8)
        for column, label in enumerate(neighbour_label[number], 2):
            colour, mark = (figures.GREEN, RIGHT) if label == own else (figures.RED, WRONG)
            figures.show(line[column], neighbours[number, column - 2], colour)
            line[column].set_title(f"{mark} {names[int(label)]}", fontsize=8)
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
