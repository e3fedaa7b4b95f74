"""The patches: an image beside what its patch tokens have in common, as colours."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from supmim.report import figures


def draw(path: Path, *, image: np.ndarray, colours: np.ndarray) -> None:
    """image [n, S, S, C]; colours [n, grid, grid, 3] in [0, 1]. Two pairs a row."""
    rows = (len(image) + 1) // 2
    figure = Figure(figsize=(8.4, 2.05 * rows + 0.5), layout="constrained")
    axes = figure.subplots(rows, 5, squeeze=False, gridspec_kw={"width_ratios": [1, 1, 0.25, 1, 1]})
    for axis in axes.ravel():
        axis.set_axis_off()
    for number, (picture, colour) in enumerate(zip(image, colours, strict=True)):
        pair = axes[number // 2, 3 * (number % 2) :][:2]
        for axis, shown in zip(pair, (picture, colour), strict=True):
            axis.set_axis_on()
            figures.show(axis, shown)
    figure.suptitle(
        "image | first three principal components of its patch tokens as red, green, blue",
        fontsize=10,
    )
    figures.save(figure, path)
