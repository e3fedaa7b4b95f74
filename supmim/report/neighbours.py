"""The strip: a query and its nearest training images, right and wrong ones framed."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from supmim.report import figures

NEIGHBOURS = 5


def draw(
    path: Path, *, query: np.ndarray, neighbours: np.ndarray, query_label: np.ndarray,
    neighbour_label: np.ndarray, class_names: Sequence[str],
) -> None:  # fmt: skip
    """query [n, H, W, C], neighbours [n, k, H, W, C]; labels [n] and [n, k] index class_names."""
    rows, columns = neighbour_label.shape
    figure = Figure(figsize=(1.25 * (columns + 1) + 0.8, 1.35 * rows + 0.5), layout="constrained")
    axes = figure.subplots(
        rows, columns + 2, squeeze=False, gridspec_kw={"width_ratios": [1, 0.3] + [1] * columns}
    )
    figure.suptitle(
        "query | nearest training images by cosine: green right, red wrong class", fontsize=10
    )
    for row in range(rows):
        axes[row, 1].set_axis_off()
        figures.show(axes[row, 0], query[row], title=class_names[query_label[row]])
        for column in range(columns):
            label = neighbour_label[row, column]
            wrong = label != query_label[row]
            figures.show(
                axes[row, column + 2], neighbours[row, column],
                frame=figures.RED if wrong else figures.GREEN, title=class_names[label],
            )  # fmt: skip
    figures.save(figure, path)
