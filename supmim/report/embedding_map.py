"""The map of embeddings: every image a point, coloured by class."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from supmim.errors import counted
from supmim.report import figures

COLOURED = 20  # classes with a colour and a line in the legend: the most frequent ones


def draw(
    path: Path, *, points: np.ndarray, label: np.ndarray, class_names: Sequence[str], title: str
) -> None:
    """Draw points [n, 2] with labels [n]; classes beyond COLOURED are grey, below the others."""
    count = np.bincount(label, minlength=len(class_names))
    present = np.flatnonzero(count)
    named = np.sort(present[np.argsort(-count[present], kind="stable")][:COLOURED])
    others = ~np.isin(label, named)
    figure = Figure(figsize=(7, 6.3), layout="constrained")
    axes = figure.subplots()
    size = np.clip(8000 / len(points), 3, 36)
    if others.any():
        text = counted(len(present) - len(named), "other class")
        axes.scatter(*points[others].T, s=size / 2, color=figures.GREY, alpha=0.3, label=text)
    colours = figures.palette("tab10" if len(named) <= 10 else "tab20")
    for number, (colour, kind) in enumerate(zip(colours, named, strict=False)):
        text = figures.label(class_names[int(kind)], longest=24)  # leaves room for the map
        style = {"marker": "o^"[number % 2], "linewidth": 0}
        axes.scatter(*points[label == kind].T, s=size, color=colour, label=text, **style)
    axes.set(xticks=[], yticks=[])
    axes.set_title(title, fontsize=10)
    axes.legend(loc="upper right", fontsize=8, framealpha=1, markerscale=(30 / size) ** 0.5)
    figures.make_room(figure, "x")
    figures.save(figure, path)
