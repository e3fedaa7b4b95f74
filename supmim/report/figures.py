"""What all pictures share: a figure without global state, images without axes."""

import os
from pathlib import Path

import numpy as np
from matplotlib import image
from matplotlib.axes import Axes
from matplotlib.figure import Figure

GREEN, RED, BLUE, ORANGE, GREY = "#2a9d4e", "#d62839", "#2364aa", "#f08a24", "#8a8f98"


def show(axes: Axes, picture: np.ndarray, frame: str = "", title: str = "") -> None:
    """Draws [H, W, 1 or 3], uint8 or [0, 1], with an optional coloured frame."""
    top = 255 if picture.dtype == np.uint8 else 1
    axes.imshow(
        np.clip(picture, 0, top).squeeze(), cmap="gray", vmin=0, vmax=top, interpolation="nearest"
    )
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(visible=bool(frame), color=frame or "none", linewidth=3)
    if title:
        axes.set_title(title, fontsize=9)


def load(path: Path) -> np.ndarray:
    """A PNG as [1, H, W, 3] in [0, 1]."""
    return image.imread(path)[None, ..., :3]


def save(figure: Figure, path: Path) -> None:
    """Writes a PNG, whole or not at all."""
    part = path.with_name(path.name + ".part")
    figure.savefig(part, format="png", dpi=110, facecolor="white")
    os.replace(part, path)
