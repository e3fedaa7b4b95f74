"""The confusion picture: which classes are taken for which."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from supmim.report import figures

MOST_NUMBERS = 20  # classes up to which counts are written into the cells


def draw(path: Path, counts: np.ndarray, class_names: Sequence[str]) -> None:
    """counts [C, C]: rows are true classes, columns predicted ones; a cell's shade is its share of
    its row. What is right is blue, what is wrong orange.
    """
    num_classes = len(counts)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = min(12.0, 2.6 + 0.42 * num_classes)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    axes.imshow(shades(share), interpolation="nearest")
    size = 9 if num_classes <= MOST_NUMBERS else 6
    axes.set_xticks(range(num_classes), class_names, rotation=90, fontsize=size)
    axes.set_yticks(range(num_classes), class_names, fontsize=size)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    wrong = counts.sum() - np.trace(counts)
    axes.set_title(f"{wrong:,} of {counts.sum():,} images wrong", fontsize=10)
    if num_classes <= MOST_NUMBERS:
        for row, column in np.argwhere(counts):
            axes.text(
                column, row, f"{counts[row, column]:,}", ha="center", va="center", fontsize=8,
                color="white" if share[row, column] > 0.6 else "black",
            )  # fmt: skip
    figures.save(figure, path)


def shades(share: np.ndarray) -> np.ndarray:
    """[C, C] in [0, 1] -> [C, C, 3]: white at 0; the least that is wrong can be seen."""
    colours = [np.array([int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)])
               for c in (figures.ORANGE, figures.BLUE)]  # fmt: skip
    right = np.eye(len(share), dtype=bool)[..., None]
    depth = np.where(share > 0, 0.15 + 0.85 * share, 0)[..., None]
    colour = np.where(right, colours[1].reshape(1, 1, 3), colours[0].reshape(1, 1, 3))
    return 1 - depth * (1 - colour)
