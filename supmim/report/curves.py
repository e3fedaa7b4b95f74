"""The curves of a run, from its metrics."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from supmim.report import figures, units
from supmim.report.figures import BLUE, GREEN, GREY, ORANGE, RED

Panel = tuple[str, tuple[tuple[str, str], ...]]  # title; name and colour of each curve
COLOURS = [to_hex(colour) for colour in figures.palette("tab10")]
LINES = ("-", "--", "-.", ":")  # and MARKERS: curves differ without their colours too
MARKERS = "os^DvPX<>*"
WIDTH, HEIGHT = 10, 3.1  # inches: of the figure, and of a row of panels
# Prefixes without panels of their own.
NO_RESULTS = ("floor", "goodput", "wall_seconds", "cpu_seconds", "tokenizer", "unreadable")

PANELS = {
    "losses": {"class_loss": BLUE, "mim_loss": ORANGE, "soft_target_loss": GREEN},
    "loss of pixels": {"pixel_loss": BLUE},
    "training accuracy, %": {"train_top1": BLUE, "token_accuracy": ORANGE, "pixel_accuracy": GREEN},
    "evaluation, %": {
        "classification/top1": BLUE,
        "knn/recall_at_1": GREEN,
        "reconstruction/token_accuracy": ORANGE,
        "reconstruction/pixels_explained": ORANGE,
        "segmentation/miou": BLUE,
        "segmentation/pixel_accuracy": GREEN,
    },
    "losses of a tokenizer": {
        "reconstruction_loss": BLUE,
        "commitment_loss": ORANGE,
        "codebook_loss": GREEN,
        "generator_loss": GREY,
        "discriminator_loss": RED,
    },
    "PSNR, dB": {"psnr": BLUE, "tokenizer/psnr": GREEN, "floor/patch_vq_psnr": GREY},
    "codes used, %": {"tokenizer/code_usage": GREEN},
    "gradient norm": {"grad_norm": GREY},
}


def draw(path: Path, rows: list[dict[str, float]]) -> None:
    """Draw the lines of metrics.jsonl over the steps: a panel for each group of metrics in them."""
    known = {name for row in rows for name in row}
    shown = [(title, tuple(of.items())) for title, of in PANELS.items() if known & of.keys()]
    shown += evaluator_panels(rows)
    rows_of_panels = max(1, -(-len(shown) // 2))
    figure = Figure(figsize=(WIDTH, HEIGHT * rows_of_panels), layout="constrained")
    grid = figure.add_gridspec(rows_of_panels, 2)
    last = max((row["step"] for row in rows), default=1)
    for place, (title, curves) in enumerate(shown):
        alone = place == len(shown) - 1 and place % 2 == 0  # it takes the whole row
        axes = figure.add_subplot(grid[place // 2, slice(None) if alone else place % 2])
        scale, prefix = (100 if title.endswith("%") else 1), title.removesuffix(", %") + "/"
        for number, (name, color) in enumerate(curves):
            points = [(row["step"], scale * row[name]) for row in rows if row.get(name) is not None]
            lines = axes.plot(*zip(*points, strict=True), color=color) if points else []
            for line in lines:
                line.set(linewidth=1.6, label=figures.label(name.removeprefix(prefix), 30))
                if "/" in name:
                    line.set(marker=MARKERS[number % len(MARKERS)], markersize=4.5)
                else:
                    line.set_linestyle(LINES[number % len(LINES)])
        axes.set_title(figures.label(title), fontsize=10)
        axes.set_xlabel("step", fontsize=9)
        axes.set_xlim(0, 1.02 * last)
        low, high = axes.get_ylim()
        if scale == 100 and high > 100:
            axes.set_ylim(low, 100 + 0.03 * (100 - low))  # no share is larger
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.tick_params(labelsize=9)
        axes.grid(alpha=0.3)
        if axes.lines:
            columns = 1 if len(axes.lines) < 3 else 2
            axes.legend(loc="lower left", ncols=columns, fontsize=8, framealpha=1)
    figures.make_room(figure, "y")
    figures.save(figure, path)


def evaluator_panels(rows: list[dict[str, float]]) -> Iterator[Panel]:
    """Yield panels for results that PANELS does not show, once there are two values of each.

    Shares stand together; a result with another unit has its own panel. Results of more classes
    than there are colours have none, since the mean over the classes says more.
    """
    drawn = {name for curves in PANELS.values() for name in curves}
    count = Counter(name for row in rows for name, value in row.items() if value is not None)
    names = [
        name for name, times in count.items() if "/" in name and times > 1 and "without" not in name
    ]
    for group in dict.fromkeys(map(group_of, names)):
        of_one = [name for name in names if group_of(name) == group]
        if group.split("/")[0] in NO_RESULTS or drawn.issuperset(of_one):
            continue
        shares = [name for name in of_one if units.is_share(name)]
        if "/" in group and len(shares) > len(COLOURS):
            continue
        for first in range(0, len(shares), len(COLOURS)):
            some = shares[first : first + len(COLOURS)]
            yield f"{group}, %", tuple(zip(some, COLOURS, strict=False))
        for name in of_one:
            if name not in shares and name not in drawn:
                yield units.with_unit(name), ((name, BLUE),)


def group_of(name: str) -> str:
    """Return EVALUATOR for EVALUATOR/RESULT, and EVALUATOR/RESULT for EVALUATOR/RESULT/CLASS."""
    evaluator, result, *of_class = name.split("/")
    return f"{evaluator}/{result}" if of_class else evaluator
