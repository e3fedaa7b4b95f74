"""The picture of reconstructions: original | masked | predictions, a column each."""

from pathlib import Path

import numpy as np

from supmim.report import figures

HIDDEN = (0.33, 0.45, 0.62)  # colour of a hidden patch: no shade of grey


def draw(
    path: Path,
    *,
    image: np.ndarray,
    mask: np.ndarray,
    patch_size: int,
    columns: dict[str, np.ndarray],
) -> None:
    """Draw images [n, S, S, C] in [0, 1] and columns of predictions.

    mask: [n, N], 1 = hidden. columns: title -> n pictures of any size.
    """
    shown = {"original": image, "masked": masked(image, mask, patch_size), **columns}
    size = (2.55 * len(shown), 1.22 * ((len(image) + 1) // 2) + 0.75)
    figures.save(figures.two_blocks(size, shown, gap=0.35), path)


def masked(image: np.ndarray, mask: np.ndarray, patch_size: int) -> np.ndarray:
    """Return the images [n, S, S, 3] with hidden patches in a colour of their own."""
    grid = image.shape[1] // patch_size
    hidden = mask.reshape(-1, grid, grid).repeat(patch_size, 1).repeat(patch_size, 2)[..., None]
    colour = np.broadcast_to(image, (*image.shape[:3], 3))
    return np.where(hidden > 0, np.array(HIDDEN, np.float32), colour)
