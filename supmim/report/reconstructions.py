"""The grid: original | masked | what was predicted, in as many columns as there are."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from supmim.report import figures

HIDDEN = (0.33, 0.45, 0.62)  # colour of a hidden patch: no shade of grey


def draw(
    path: Path, *, image: np.ndarray, mask: np.ndarray, patch_size: int,
    columns: dict[str, np.ndarray],
) -> None:  # fmt: skip
    """Images [n, S, S, C] in [0, 1]; mask [n, N], 1 = hidden; columns: title -> n pictures of any
    size.
    """
    shown = {"original": image, "masked": masked(image, mask, patch_size), **columns}
    half, width = (len(image) + 1) // 2, len(shown)  # two blocks of columns side by side
    figure = Figure(figsize=(2.55 * width, 1.22 * half + 0.75), layout="constrained")
    ratios = [1] * width + [0.35] + [1] * width
    axes = figure.subplots(half, len(ratios), gridspec_kw={"width_ratios": ratios}, squeeze=False)
    for axis in axes.ravel():
        axis.set_axis_off()
    for i in range(len(image)):
        row, left = i % half, (width + 1) * (i // half)
        for column, (title, pictures) in enumerate(shown.items()):
            axis = axes[row, left + column]
            axis.set_axis_on()
            figures.show(axis, pictures[i], title=title if row == 0 else "")
    figures.save(figure, path)


def masked(image: np.ndarray, mask: np.ndarray, patch_size: int) -> np.ndarray:
    """The images with hidden patches in a colour of their own: [n, S, S, 3]."""
    grid = image.shape[1] // patch_size
    hidden = mask.reshape(-1, grid, grid).repeat(patch_size, 1).repeat(patch_size, 2)[..., None]
    colour = np.broadcast_to(image, (*image.shape[:3], 3))
    return np.where(hidden > 0, np.array(HIDDEN, np.float32), colour)
