"""The grid: original | masked | filled in | tokenizer's own reconstruction."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from supmim.report import figures

COLUMNS = (
    "original",
    "masked",
    "filled in from\npredicted tokens",
    "tokenizer's own\nreconstruction",
)
HIDDEN = (0.33, 0.45, 0.62)  # colour of a hidden patch: no shade of grey


def draw(
    path: Path, *, image: np.ndarray, mask: np.ndarray, filled: np.ndarray,
    tokenized: np.ndarray, patch_size: int,
) -> None:  # fmt: skip
    """Images [n, S, S, C] in [0, 1]; mask [n, N], 1 = hidden."""
    grid = image.shape[1] // patch_size
    hidden = mask.reshape(-1, grid, grid).repeat(patch_size, 1).repeat(patch_size, 2)[..., None]
    colour = np.broadcast_to(image, (*image.shape[:3], 3))
    masked = np.where(hidden > 0, np.array(HIDDEN, np.float32), colour)
    half = (len(image) + 1) // 2  # two blocks of columns side by side
    figure = Figure(figsize=(10.2, 1.22 * half + 0.75), layout="constrained")
    axes = figure.subplots(half, 9, gridspec_kw={"width_ratios": [1] * 4 + [0.35] + [1] * 4})
    axes = axes.reshape(half, 9)
    for axis in axes.ravel():
        axis.set_axis_off()
    for i in range(len(image)):
        row, left = i % half, 5 * (i // half)
        for column, picture in enumerate((image[i], masked[i], filled[i], tokenized[i])):
            axis = axes[row, left + column]
            axis.set_axis_on()
            figures.show(axis, picture, title=COLUMNS[column] if row == 0 else "")
    figures.save(figure, path)
