"""The picture of a confusion matrix."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from supmim.errors import counted
from supmim.report import figures

MOST_NUMBERS = 20  # classes of a matrix whose counts are written into the cells


def draw(path: Path, counts: np.ndarray, class_names: Sequence[str]) -> None:
    """Draw counts [C, C] with true classes as rows; shades are shares of a row, blue if right."""
    num_classes = len(counts)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = min(12.0, 2.6 + 0.42 * num_classes)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    axes.imshow(shades(share), interpolation="nearest")
    names = [figures.label(name, longest=24) for name in class_names]
    size = 9 if num_classes <= MOST_NUMBERS else 6
    axes.set_xticks(
        range(num_classes),
        names,
        rotation=90 if any(len(name) > 3 for name in names) else 0,
        fontsize=size,
    )
    axes.set_yticks(range(num_classes), names, fontsize=size)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    wrong = counts.sum() - np.trace(counts)
    axes.set_title(f"{wrong:,} of {counted(counts.sum(), 'image')} wrong", fontsize=10)
    if num_classes <= MOST_NUMBERS:
        for row, column in np.argwhere(counts):
            text, color = (
                f"{counts[row, column]:,}",
                "white" if share[row, column] > 0.6 else "black",
            )
            axes.text(column, row, text, ha="center", va="center", fontsize=8, color=color)
    figures.save(figure, path)


def shades(share: np.ndarray) -> np.ndarray:
    """Return colours [C, C, 3] of shares [C, C]: white at 0, visible for any share."""
    orange, blue = (np.array(to_rgb(colour)) for colour in (figures.ORANGE, figures.BLUE))
    right = np.eye(len(share), dtype=bool)[..., None]
    depth = np.where(share > 0, 0.15 + 0.85 * share, 0)[..., None]
    return 1 - depth * (1 - np.where(right, blue, orange))
