"""The curves of a run, from its metrics."""

from pathlib import Path

from matplotlib.figure import Figure

from supmim.report import figures

PANELS = (
    ("losses, nats", (("class_loss", figures.BLUE), ("mim_loss", figures.ORANGE))),
    (
        "training accuracy, %",
        (("train_top1", figures.BLUE), ("token_accuracy", figures.ORANGE)),
    ),
    (
        "evaluation, %",
        (
            ("classification/top1", figures.BLUE),
            ("knn/recall_at_1", figures.GREEN),
            ("reconstruction/token_accuracy", figures.ORANGE),
        ),
    ),
    ("gradient norm", (("grad_norm", figures.GREY),)),
)


def draw(path: Path, rows: list[dict[str, float]]) -> None:
    """rows: the lines of metrics.jsonl. A panel per group of metrics, over steps."""
    figure = Figure(figsize=(10, 6), layout="constrained")
    for axes, (title, curves) in zip(figure.subplots(2, 2).ravel(), PANELS, strict=True):
        scale = 100 if title.endswith("%") else 1
        for name, color in curves:
            points = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
            if points:
                steps, values = zip(*points, strict=True)
                marker = "o" if "/" in name else None
                axes.plot(
                    steps, [scale * v for v in values], color=color, label=name, marker=marker,
                    markersize=4, linewidth=1.6,
                )  # fmt: skip
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("step", fontsize=9)
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize=8)
    figures.save(figure, path)
