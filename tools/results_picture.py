"""Draw the score of every arm over the FLOPs of its training.

Called by results.py.
"""

import dataclasses
import itertools
import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from PIL import Image

from supmim.report import figures

SIZE = (8.4, 8.4)  # inches
MARKERS = "os^Dv<>P"


@dataclasses.dataclass(frozen=True)
class Dot:
    """An arm: its FLOPs, in units of 10^12, and one value per seed, in percent."""

    flops: float
    values: list[float]


@dataclasses.dataclass(frozen=True)
class Curve:
    """Arms that differ in their length."""

    name: str
    dots: list[Dot]


@dataclasses.dataclass(frozen=True)
class Panel:
    """The arms of a table."""

    title: str
    metric: str
    curves: list[Curve]


def draw(path: Path, panels: Sequence[Panel]) -> None:
    """Draw panels, two in a row: small dots are seeds, large ones their mean."""
    figure = Figure(figsize=SIZE, layout="constrained")
    grid = figure.subplots(-(-len(panels) // 2), 2, squeeze=False)
    others = colormaps["tab10"](np.delete(np.arange(10), 0))
    for axes, panel in itertools.zip_longest(grid.ravel(), panels):
        if panel is None:
            axes.set_axis_off()
            continue
        for number, curve in enumerate(panel.curves):
            colour = figures.BLUE if number == 0 else others[number - 1]
            for dot in curve.dots:
                axes.plot([dot.flops] * len(dot.values), dot.values, ".", color=colour, alpha=0.5)
            means = [(dot.flops, statistics.fmean(dot.values)) for dot in curve.dots]
            if means:
                style = f"-{MARKERS[number % len(MARKERS)]}"
                axes.plot(*zip(*means, strict=True), style, color=colour, label=curve.name,
                          markersize=8)  # fmt: skip
        axes.set(title=panel.title, xlabel="training [TFLOPs]", ylabel=panel.metric)
        axes.set_xlim(left=0)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(0, -0.16))  # below the dots
    figures.save(figure, path)
    with Image.open(path) as drawn:  # a third of the bytes
        drawn.convert("RGB").quantize().save(path, optimize=True)
