"""The picture of segmentations: image | truth | answer, classes as colours over the image."""

import functools
from pathlib import Path

import numpy as np
from matplotlib.patches import Patch
from PIL import Image

from supmim.report import figures

STRENGTH = 0.65  # of a class's colour over the image
LEGEND = 40  # classes at most
IGNORED = (1.0, 1.0, 1.0)
DARK, GREY = (
    (0.12, 0.12, 0.16),
    (0.5, 0.5, 0.5),
)  # DARK is the first class; GREY, like images, is none
PALETTES = ("tab10", "Set1", "Dark2", "tab20b", "tab20c")
MIN_DISTANCE = 0.15  # between the colours of two classes, in a cube of side 1
IN_A_ROW = 8  # names of the legend
LARGEST = 256  # side of a picture, in pixels


def draw(
    path: Path, rows: list[tuple[np.ndarray, np.ndarray, np.ndarray]], class_names: tuple[str, ...]
) -> None:
    """Draw rows: image uint8 [h, w, C], truth and answer [H, W]; classes below 0 are ignored."""
    present = set().union(*(np.unique(np.stack(row[1:])).tolist() for row in rows)) - {-1}
    palette = [tuple(colour) for colour in colours().tolist()]
    legend = [
        Patch(color=palette[i % len(palette)], label=figures.label(class_names[i]))
        for i in sorted(present)
    ]
    lines = -(-min(len(legend), LEGEND) // IN_A_ROW)
    size = (10, 1.65 * ((len(rows) + 1) // 2) + 0.3 + 0.25 * lines)
    image, truth, answer = zip(*(pictures(*row) for row in rows), strict=True)
    columns = {"image": image, "truth": truth, "answer": answer}
    figure = figures.two_blocks(size, columns, gap=0.15)
    style = {"loc": "outside lower center", "fontsize": 8, "frameon": False}
    figure.legend(handles=by_row(legend[:LEGEND]), ncols=IN_A_ROW, **style)
    figures.save(figure, path)


def pictures(image: np.ndarray, truth: np.ndarray, answer: np.ndarray) -> list[np.ndarray]:
    """Return three pictures of one small size, in [0, 1], of [h, w, C], [H, W] and [H, W]."""
    height, width = truth.shape
    shrink = max(1, max(height, width) / LARGEST)
    size = max(1, round(width / shrink)), max(1, round(height / shrink))
    colour = Image.fromarray(np.broadcast_to(image, (*image.shape[:2], 3)).copy())
    plain = np.asarray(colour.resize(size, Image.Resampling.BILINEAR), np.float32) / 255
    return [plain, *(overlay(plain, ids) for ids in (truth, answer))]


def overlay(plain: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Return a picture [h, w, 3] with the colours of classes [H, W] over it."""
    rows, columns = (np.arange(n) * m // n for n, m in zip(plain.shape[:2], ids.shape, strict=True))
    small = ids[np.ix_(rows, columns)]
    mixed = (1 - STRENGTH) * plain + STRENGTH * colours()[small % len(colours())]
    return np.where(small[..., None] < 0, np.array(IGNORED, np.float32), mixed)


@functools.cache
def colours() -> np.ndarray:
    """Return the colours [n, 3] of classes, each as far as possible from those before it."""
    left = np.concatenate([figures.palette(name) for name in PALETTES])
    left = left[np.ptp(left, axis=1) > 0.2]
    taken = [np.array(IGNORED), np.array(GREY), np.array(DARK)]
    while len(left):
        nearest = np.min([np.linalg.norm(left - other, axis=1) for other in taken], axis=0)
        left = left[nearest > MIN_DISTANCE]
        if len(left):
            taken.append(left[nearest[nearest > MIN_DISTANCE].argmax()])
    return np.array(taken[2:], np.float32)


def by_row(legend: list[Patch]) -> list[Patch]:
    """Reorder entries so that a legend, which fills its columns first, reads row by row."""
    return [patch for column in range(IN_A_ROW) for patch in legend[column::IN_A_ROW]]
