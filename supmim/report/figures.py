"""Helpers of all pictures: figures without global state, axes for images, colours, names."""

import contextlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from matplotlib import colormaps, image
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

from supmim.runtime.streams import printable
from supmim.storage.paths import whole

GREEN, RED, BLUE, ORANGE, GREY = "#2a9d4e", "#d62839", "#2364aa", "#f08a24", "#8a8f98"


def palette(name: str) -> np.ndarray:
    """Return the colours [n, 3] in [0, 1] of one of Matplotlib's qualitative colormaps."""
    colormap = colormaps[name]
    return colormap(np.arange(colormap.N))[:, :3]


def grid(
    size: tuple[float, float], rows: int, ratios: Sequence[float]
) -> tuple[Figure, np.ndarray]:
    """Return a figure and its axes [rows, columns], each invisible until `show` draws into it.

    size: width and height in inches. ratios: relative widths of the columns.
    """
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(rows, len(ratios), squeeze=False, gridspec_kw={"width_ratios": ratios})
    for axis in axes.ravel():
        axis.set_axis_off()
    return figure, axes


def two_blocks(
    size: tuple[float, float], columns: Mapping[str, np.ndarray | Sequence[np.ndarray]], gap: float
) -> Figure:
    """Return a figure of pictures in titled columns, its rows in two blocks side by side.

    size: width and height in inches. columns: title -> n pictures. gap: relative width between the
    blocks.
    """
    count, width = len(next(iter(columns.values()))), len(columns)
    half = (count + 1) // 2
    figure, axes = grid(size, half, [1] * width + [gap] + [1] * width)
    for column, (title, pictures) in enumerate(columns.items()):
        for i, picture in enumerate(pictures):
            axis = axes[i % half, (width + 1) * (i // half) + column]
            show(axis, picture, title=title if i % half == 0 else "")
    return figure


def show(axes: Axes, picture: np.ndarray, frame: str = "", title: str = "") -> None:
    """Draw [H, W, 1 or 3], uint8 or in [0, 1], with an optional coloured frame."""
    top = 255 if picture.dtype == np.uint8 else 1
    axes.set_axis_on()
    axes.imshow(
        np.clip(picture, 0, top).squeeze(), cmap="gray", vmin=0, vmax=top, interpolation="nearest"
    )
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(visible=bool(frame), color=frame or "none", linewidth=3)
    if title:
        axes.set_title(title, fontsize=9)


def make_room(figure: Figure, axis: Literal["x", "y"]) -> None:
    """Lengthen an axis of all axes so that their legends, at its end or start, hide no points.

    axis: x for legends at the right, y for legends at the bottom.
    """
    with plain_text(figure):
        figure.draw_without_rendering()  # so that sizes are known
        legends = [(axes, legend) for axes in figure.axes if (legend := axes.get_legend())]
        sizes = [(axes.get_window_extent(), of.get_window_extent()) for axes, of in legends]
    for (axes, _), (inside, taken) in zip(legends, sizes, strict=True):
        if axis == "x":
            share = min(taken.width / inside.width + 0.03, 0.8)
            low, high = axes.get_xlim()
            axes.set_xlim(low, high + (high - low) * share / (1 - share))
        else:
            share = min(taken.height / inside.height + 0.04, 0.8)
            low, high = axes.get_ylim()
            axes.set_yticks([tick for tick in axes.get_yticks() if low <= tick <= high])
            axes.set_ylim(low - (high - low) * share / (1 - share), high)


def label(name: str, longest: int = 40) -> str:
    """Return a name of a class or a result as text of a picture: printable, and cut if longer."""
    text = printable(name)
    if text.startswith("_"):
        text = " " + text  # Matplotlib would leave it out of legends
    return text if len(text) <= longest else text[: longest - 1] + "…"


def load(path: Path) -> np.ndarray:
    """Return a PNG as [1, H, W, 3] in [0, 1]."""
    with path.open("rb") as file:
        return image.imread(file)[None, ..., :3]


def save(figure: Figure, path: Path) -> None:
    """Write a PNG completely or not at all."""
    with whole(path) as part, plain_text(figure):
        figure.savefig(part, format="png", dpi=110, facecolor="white")


@contextlib.contextmanager
def plain_text(figure: Figure) -> Iterator[None]:
    """Let the texts of a figure be drawn as they are, even if they look like formulas.

    A character that the font lacks becomes a box. To have it drawn, choose a font in Matplotlib's
    settings.
    """
    for text in figure.findobj(Text):
        text.set_parse_math(False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font", UserWarning)
        yield
