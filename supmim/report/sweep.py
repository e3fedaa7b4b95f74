"""The picture of a sweep: a dot per seed and the mean, row by row."""

import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from supmim.report import figures, units


def draw(path: Path, rows: Sequence[tuple[str, Sequence[float], str]], metric: str) -> None:
    """Draw rows of (label, one value per seed, text at the right); fractions become percents."""
    scale = 100 if units.is_share(metric) else 1
    figure = Figure(figsize=(8, 1.2 + 0.36 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for y, (_, values, text) in enumerate(rows):
        if values:  # dots stand one below the other, so that equal values are distinguishable
            scaled = [scale * value for value in values]
            mean, spread = statistics.fmean(scaled), 0.2 * np.linspace(-1, 1, len(scaled))
            axes.plot([mean] * 2, [y - 0.35, y + 0.35], color=figures.ORANGE, linewidth=2.5)
            axes.plot(scaled, y + spread - spread.mean(), "o", color=figures.BLUE, markersize=5)
        axes.text(1.01, y, text, transform=axes.get_yaxis_transform(), va="center", fontsize=9)
    axes.set_yticks(range(len(rows)), [figures.label(name, 48) for name, *_ in rows], fontsize=9)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel(figures.label(units.with_unit(metric)), fontsize=9)
    axes.set_title("a dot per seed; the line is their mean", fontsize=10)
    axes.grid(axis="x", alpha=0.3)
    figures.save(figure, path)
