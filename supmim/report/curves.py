"""The curves of a run, from its metrics."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from supmim.report import figures, page

Panel = tuple[str, tuple[tuple[str, str], ...]]  # title; name and colour of each curve
COLOURS = [matplotlib.colors.to_hex(colour) for colour in matplotlib.colormaps["tab10"].colors]
BESIDE = 3  # curves of which the legend lies within the panel
NO_RESULTS = ("floor", "goodput", "tokenizer", "unreadable")  # prefixes without a panel of theirs

PANELS = (
    ("losses", (("class_loss", figures.BLUE), ("mim_loss", figures.ORANGE))),
    ("loss of pixels", (("pixel_loss", figures.BLUE),)),
    (
        "training accuracy, %",
        (
            ("train_top1", figures.BLUE),
            ("token_accuracy", figures.ORANGE),
            ("pixel_accuracy", figures.GREEN),
        ),
    ),
    (
        "evaluation, %",
        (
            ("classification/top1", figures.BLUE),
            ("knn/recall_at_1", figures.GREEN),
            ("reconstruction/token_accuracy", figures.ORANGE),
            ("reconstruction/pixels_explained", figures.ORANGE),
            ("segmentation/miou", figures.BLUE),
            ("segmentation/pixel_accuracy", figures.GREEN),
        ),
    ),
    (
        "losses of a tokenizer",
        (
            ("reconstruction_loss", figures.BLUE),
            ("commitment_loss", figures.ORANGE),
            ("codebook_loss", figures.GREEN),
            ("generator_loss", figures.GREY),
            ("discriminator_loss", figures.RED),
        ),
    ),
    (
        "PSNR, dB",
        (
            ("psnr", figures.BLUE),
            ("tokenizer/psnr", figures.GREEN),
            ("floor/patch_vq_psnr", figures.GREY),
        ),
    ),
    ("codes used, %", (("tokenizer/code_usage", figures.GREEN),)),
    ("gradient norm", (("grad_norm", figures.GREY),)),
)


def draw(path: Path, rows: list[dict[str, float]]) -> None:
    """rows: the lines of metrics.jsonl. A panel per group of metrics that they have, over steps."""
    known = {name for row in rows for name in row}
    shown = [panel for panel in PANELS if any(name in known for name, _ in panel[1])]
    shown += of_evaluators(rows)
    lines = max(1, -(-len(shown) // 2))
    figure = Figure(figsize=(10, 3 * lines), layout="constrained")
    grid = figure.subplots(lines, 2).ravel()
    for axes in grid[len(shown) :]:
        axes.set_axis_off()
    for axes, (title, curves) in zip(grid, shown, strict=False):
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
            beside = {"loc": "center left", "bbox_to_anchor": (1, 0.5)}  # it would hide curves
            axes.legend(fontsize=8, **(beside if len(axes.lines) > BESIDE else {}))
    figures.save(figure, path)


def of_evaluators(rows: list[dict[str, float]]) -> Iterator[Panel]:
    """Panels of evaluators of which others show but a part, once there are two of each result.

    Shares stand together, what has another unit has a panel of its own. Of more classes than there
    are colours, the picture of a mean tells more.
    """
    drawn = {name for _, curves in PANELS for name, _ in curves}
    count = Counter(name for row in rows for name, value in row.items() if value is not None)
    names = [
        name for name, times in count.items() if "/" in name and times > 1 and "without" not in name
    ]
    for group in dict.fromkeys(map(group_of, names)):
        of_one = [name for name in names if group_of(name) == group]
        if group.split("/")[0] in NO_RESULTS or drawn.issuperset(of_one):
            continue
        shares = [name for name in of_one if page.is_share(name)]
        if "/" in group and len(shares) > len(COLOURS):
            continue
        for first in range(0, len(shares), len(COLOURS)):
            some = shares[first : first + len(COLOURS)]
            yield f"{group}, %", tuple(zip(some, COLOURS, strict=False))
        for name in of_one:
            if name not in shares and name not in drawn:
                yield name, ((name, figures.BLUE),)


def group_of(name: str) -> str:
    """EVALUATOR of EVALUATOR/RESULT, EVALUATOR/RESULT of one that there is for every class."""
    evaluator, result, *of_class = name.split("/")
    return f"{evaluator}/{result}" if of_class else evaluator
