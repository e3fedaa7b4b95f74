"""Draw the README's pictures of the digits run: losses, digits filled in, nearest neighbours.

supmim train --config=digits --workdir=runs/digits
python tools/readme_pictures.py runs/digits

They go to docs/pictures, or to --out. The same workdir gives the same pictures.
"""

import argparse
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from supmim.commands import draw
from supmim.data import sources
from supmim.data.sources.base import Source
from supmim.interop import load
from supmim.model import Model
from supmim.report import figures
from supmim.workdir import files
from supmim.workdir.writer import read_metrics

SIZE = (4.4, 3.3)  # inches of each picture: they stand side by side
HIDDEN = 0.75  # share of patches that are hidden, as in digits.py
SHOWN = (0, 1, 2, 3)  # rows of the picture of digits filled in
QUERIES, NEIGHBOURS = 4, 4


def losses(workdir: Path, path: Path) -> None:
    """Draw both losses over the steps."""
    rows = [row for row in read_metrics(workdir / "metrics.jsonl") if "class_loss" in row]
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.subplots()
    for name, text, colour in (
        ("mim_loss", "tokens of hidden patches", figures.ORANGE),
        ("class_loss", "classes", figures.BLUE),
    ):
        points = [(row["step"], row[name]) for row in rows if name in row]
        axes.plot(*zip(*points, strict=True), color=colour, label=text, linewidth=2)
    axes.set(xlabel="step", ylabel="cross-entropy", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend()
    figures.save(figure, path)


def filled_in(workdir: Path, path: Path) -> None:
    """Draw test digits, what the encoder sees of them, and what the decoder fills in."""
    config = files.read_config(workdir)
    _, source = sources.load(config.data, config.facts.has_labels)
    assert source
    batch = draw.read(config, source)
    found = draw.filled_in(config, workdir, batch, (HIDDEN,))
    titles = ["original", f"{HIDDEN:.0%} hidden", "filled in"]
    figure, axes = figures.grid(SIZE, len(titles), [1] * len(SHOWN))
    for row, (title, pictures) in enumerate(zip(titles, found.values(), strict=False)):
        for column, index in enumerate(SHOWN):
            figures.show(axes[row, column], pictures[index])
        axes[row, 0].set_ylabel(title, fontsize=10)
    figures.save(figure, path)


def neighbours(workdir: Path, path: Path) -> None:
    """Draw test digits and the nearest training digits by cosine, framed as right or wrong."""
    model = load.load(workdir)
    train, evaluation = sources.load(model.config.data, model.config.facts.has_labels)
    assert evaluation
    bank, queries = (embedded(model, source) for source in (train, evaluation))
    rows = np.linspace(0, len(evaluation) - 1, QUERIES).astype(int)
    ranked = np.argsort(-queries[rows] @ bank.T, axis=1, kind="stable")[:, :NEIGHBOURS]
    figure, axes = figures.grid(SIZE, QUERIES, [1, 0.35] + [1] * NEIGHBOURS)
    for line, (row, near) in enumerate(zip(rows, ranked, strict=True)):
        query = evaluation[int(row)]
        figures.show(axes[line, 0], query.image, title="query" if not line else "")
        for column, index in enumerate(near):
            found = train[int(index)]
            frame = figures.GREEN if found.label == query.label else figures.RED
            title = "nearest" if not line and not column else ""
            figures.show(axes[line, column + 2], found.image, frame, title)
    figures.save(figure, path)


def embedded(model: Model, source: Source) -> np.ndarray:
    """Return the embeddings [n, D] of a source of digits, normalised."""
    rows = model.embed(np.stack([source[index].image for index in range(len(source))]))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


PICTURES = {"losses": losses, "filled_in": filled_in, "neighbours": neighbours}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workdir", type=Path, help="of a finished run with --config=digits")
    pictures = Path(__file__).parents[1] / "docs/pictures"
    parser.add_argument("--out", type=Path, default=pictures, help="folder for the pictures")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for name, drawn in PICTURES.items():
        drawn(args.workdir, args.out / f"{name}.png")
        print(args.out / f"{name}.png")


if __name__ == "__main__":
    main()
