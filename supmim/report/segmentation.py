"""The rows: image | truth | answer, classes as colours over the image."""

import functools
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image

from supmim.report import figures

COLUMNS = ("image", "truth", "answer")
STRENGTH = 0.65  # of a class's colour over the image
LEGEND = 40  # classes at most
IGNORED = (1.0, 1.0, 1.0)
DARK, GREY = (0.12, 0.12, 0.16), (0.5, 0.5, 0.5)  # of the first class; of images, and no class
PALETTES = ("tab10", "Set1", "Dark2", "tab20b", "tab20c")
TOO_NEAR = 0.15  # between two of them, of a cube of side 1
IN_A_ROW = 8  # names of the legend
LARGEST = 256  # side of a picture, in pixels


def draw(
    path: Path, rows: list[tuple[np.ndarray, np.ndarray, np.ndarray]], class_names: tuple[str, ...]
) -> None:
    """rows: image uint8 [h, w, C], truth and answer [H, W], classes, below 0 where none counts."""
    half = (len(rows) + 1) // 2  # two blocks of columns side by side
    shown = sorted(set().union(*(np.unique(np.stack(row[1:])).tolist() for row in rows)) - {-1})
    legend = [Patch(color=colours()[i % len(colours())], label=class_names[i]) for i in shown]
    lines = -(-min(len(legend), LEGEND) // IN_A_ROW)
    figure = Figure(figsize=(10, 1.65 * half + 0.3 + 0.25 * lines), layout="constrained")
    ratios = [1, 1, 1, 0.15, 1, 1, 1]
    axes = figure.subplots(half, len(ratios), gridspec_kw={"width_ratios": ratios}, squeeze=False)
    for axis in axes.ravel():
        axis.set_axis_off()
    for i, row in enumerate(rows):
        for column, picture in enumerate(pictures(*row)):
            axis = axes[i % half, 4 * (i // half) + column]
            axis.set_axis_on()
            figures.show(axis, picture, title=COLUMNS[column] if i % half == 0 else "")
    figure.legend(
        handles=by_row(legend[:LEGEND]), loc="outside lower center", ncols=IN_A_ROW, fontsize=8,
        frameon=False,
    )  # fmt: skip
    figures.save(figure, path)


def pictures(image: np.ndarray, truth: np.ndarray, answer: np.ndarray) -> list[np.ndarray]:
    """[h, w, C], [H, W], [H, W] -> three pictures of one small size, in [0, 1]."""
    height, width = truth.shape
    shrink = max(1, max(height, width) / LARGEST)
    size = max(1, round(width / shrink)), max(1, round(height / shrink))
    colour = Image.fromarray(np.broadcast_to(image, (*image.shape[:2], 3)).copy())
    plain = np.asarray(colour.resize(size, Image.Resampling.BILINEAR), np.float32) / 255
    return [plain, *(overlaid(plain, ids) for ids in (truth, answer))]


def overlaid(plain: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """[h, w, 3] with the colours of classes [H, W]."""
    rows, columns = (np.arange(n) * m // n for n, m in zip(plain.shape[:2], ids.shape, strict=True))
    small = ids[np.ix_(rows, columns)]
    mixed = (1 - STRENGTH) * plain + STRENGTH * colours()[small % len(colours())]
    return np.where(small[..., None] < 0, np.array(IGNORED, np.float32), mixed)


@functools.cache
def colours() -> np.ndarray:
    """[n, 3]: those of classes, each as far from all before it as can be; they repeat."""
    left = np.concatenate([colormaps[name].colors for name in PALETTES])
    left = left[np.ptp(left, axis=1) > 0.2]
    taken = [np.array(IGNORED), np.array(GREY), np.array(DARK)]
    while len(left):
        nearest = np.min([np.linalg.norm(left - other, axis=1) for other in taken], axis=0)
        left = left[nearest > TOO_NEAR]
        if len(left):
            taken.append(left[nearest[nearest > TOO_NEAR].argmax()])
    return np.array(taken[2:], np.float32)


def by_row(legend: list[Patch]) -> list[Patch]:
    """In the order in which a legend, which fills its columns, shows them row by row."""
    return [patch for column in range(IN_A_ROW) for patch in legend[column::IN_A_ROW]]
