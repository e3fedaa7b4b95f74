"""Write the tables and the picture of results in the docs from results/: no number by hand.

python tools/results.py

A table of a page stands between `<!-- NAME -->` and `<!-- end -->`; the rest is left as it is.
Differences are paired by seed, with their 95 % t-interval. Times are those of arm_times.py. FLOPs
are those of `supmim sweep plan`, which looks at the images: run it beside the folder cifar10 that
tools/cifar10_folders.py makes.
"""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

from results_picture import Curve, Dot, Panel
from results_picture import draw as draw_picture

from supmim.sweeps import archive, cost, members, table
from supmim.sweeps.members import Member
from supmim.workdir import files

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "docs" / page for page in ("results.md", "features.md", "few_labels.md", "log.md")]
RESULTS, SWEEPS = ROOT / "results", ROOT / "configs/sweeps"
TIMES = "times.json"  # written by arm_times.py
PICTURE = ROOT / "docs/pictures/results.png"


@dataclasses.dataclass(frozen=True)
class Table:
    """Arms of a sweep, their metrics, and what the first metric's differences are to.

    arms: name in the sweep -> what the page calls it. metrics: name -> heading, the one of the
    differences first. equal: the arm of labels alone with the same FLOPs. lengths: all arms of
    labels alone, of which the best is compared with.
    """

    sweep: str
    arms: dict[str, str]
    metrics: dict[str, str]
    equal: str = ""
    lengths: tuple[str, ...] = ()
    after: str = ""  # prefix of the members that measure an arm's frozen encoder


FEW_LABELS = {
    "classification/top1": "top-1",
    "knn/recall_at_1": "kNN R@1",
    "knn/all_labels_recall_at_1": "kNN, all labels",
}


def few(labels: int) -> Table:
    """Return the table of one number of labels."""
    arms = {
        "labels_2000": "labels alone, 2,000 steps",
        "labels_4000": "labels alone, 4,000 steps: equal FLOPs",
        "same": "SupMIM on the same images",
        "mim_tuned": "masked modelling first, then labels",
        "rest": "SupMIM, the rest without labels",
        "features": "the same, codes of features",
    }
    return Table(
        "mim_few_labels",
        {f"{name}_of_{labels}": title for name, title in arms.items()},
        FEW_LABELS,
        f"labels_4000_of_{labels}",
        (f"labels_2000_of_{labels}", f"labels_4000_of_{labels}"),
    )


CIFAR10 = {
    "few": FEW_LABELS,
    "unseen": {"retrieval/recall_at_1": "R@1", "retrieval/map_at_r": "mAP@R"},
}


def cifar10(study: str, metrics: dict[str, str]) -> Table:
    """Return the table of a study on CIFAR-10."""
    lengths = (1000, 3000, 8000)
    arms = {
        **{f"labels_{n}": f"labels alone, {n:,} steps" for n in lengths},
        "labels_dropped": "labels alone, 3,000 steps, 75 % of the patches",
        "same": "SupMIM on the same images",
        "efficient": "the same, cheaper passes",
        "rest": "SupMIM, the rest without labels",
        "features": "the same, codes of features",
    }
    return Table(
        "mim_cifar10",
        {f"{study}_{name}": title for name, title in arms.items()},
        metrics,
        f"{study}_labels_8000",
        tuple(f"{study}_labels_{n}" for n in lengths),
    )


def features(metrics: dict[str, str], after: str = "") -> Table:
    """Return a table of what the features of digits keep."""
    arms = {
        **({"random": "random encoder"} if after else {}),
        "labels_60": "labels alone, 60 epochs",
        "labels_262": "labels alone, 262 epochs",
        "supmim": "SupMIM, 175 epochs",
    }
    lengths = ("labels_60", "labels_262")
    return Table("mim_features", arms, metrics, "labels_262", lengths, after)


LENGTHS = (60, 120, 175, 262)
TABLES = {
    "gain": Table(
        "mim_gain",
        {
            "baseline": "labels alone, 175 epochs",
            "baseline_matched": "labels alone, 262 epochs: SupMIM's FLOPs",
            "two_pass": "SupMIM, two passes",
            "one_pass": "SupMIM, one pass, no mixup",
            "efficient": "SupMIM, cheaper passes",
            "muon": "SupMIM with Muon",
            "features": "SupMIM, codes of features",
            "ssat": "SSAT's recipe",
            "supmae": "SupMAE's recipe",
        },
        {"classification/top1": "top-1", "knn/recall_at_1": "kNN R@1",
         "reconstruction/token_accuracy": "hidden tokens correct"},
        "baseline_matched",
        ("baseline", "baseline_matched"),
    ),
    "tune_few_labels": Table(
        "tune_few_labels",
        {
            **{f"labels_{n}": f"labels alone, {n:,} steps" for n in (500, 1000, 2000, 4000)},
            **{f"{target}_{steps}_{weight}": f"{what}, {steps:,} steps, MIM weight {weight}"
               for target, what in (("rest", "SupMIM"), ("features", "SupMIM, codes of features"))
               for steps, weight in ((2000, "0.3"), (2000, "1"), (2000, "3"),
                                     (3000, "1"), (3000, "3"))},
            **{f"first_{n}_{rate:g}": f"{n:,} steps of MIM first, then labels at a rate of {rate:g}"
               for n, rate in ((2000, 3e-3), (4000, 3e-3), (6000, 3e-3), (4000, 1e-3))},
        },
        {"classification/top1": "top-1", "knn/recall_at_1": "kNN R@1"},
    ),  # fmt: skip
    **{f"few_labels_{n}": few(n) for n in (20, 50, 100, 500)},
    "dense": Table(
        "mim_dense",
        {
            "random": "random encoder",
            **{f"labels_{n}": f"labels alone, {n} epochs" for n in LENGTHS},
            "supmim": "SupMIM, 175 epochs",
        },
        {"segmentation/miou": "mean IoU", "classification/top1": "top-1"},
        "labels_262",
        tuple(f"labels_{n}" for n in LENGTHS),
        after="dense_",
    ),
    "corruptions": features(
        {"corruptions/top1": "top-1, corrupted", "corruptions/noise": "noise",
         "corruptions/blur": "blur", "corruptions/contrast": "contrast",
         "corruptions/pixelation": "pixelation", "classification/top1": "top-1"},
    ),
    "multiscale": features({"segmentation/miou": "mean IoU"}, after="dense_"),
    "patches": features({"patch_knn/miou": "mean IoU"}, after="dense_"),
    **{f"cifar10_{study}": cifar10(study, metrics) for study, metrics in CIFAR10.items()},
    "unseen": Table(
        "mim_unseen",
        {
            **{f"labels_{n}": f"labels alone, {n:,} steps" for n in (1000, 2250, 4500)},
            "same": "SupMIM on the labelled classes",
            "rest": "SupMIM, other classes without labels",
        },
        {"retrieval/recall_at_1": "R@1", "retrieval/map_at_r": "mAP@R"},
        "labels_4500",
        ("labels_1000", "labels_2250", "labels_4500"),
    ),
}  # fmt: skip


PANELS = {
    "dense": "digits: segmentation of scenes",
    "unseen": "digits: classes without labels",
    "gain": "digits: all labels",
    "cifar10_few": "CIFAR-10: 1,000 labels of 10,000 images",
}


def main() -> None:
    times, left = files.read_json(RESULTS / TIMES), set(TABLES)
    for path in PAGES:
        page, made = path.read_text(), []
        for name, asked in TABLES.items():
            found = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
            if found.search(page):
                made.append(name)
                new = "".join(f"{line}\n" for line in lines(asked, times.get(asked.sweep, {})))
                page = found.sub(lambda match, new=new: match[1] + new + match[2], page)
        path.write_text(page)
        left -= set(made)
        print(f"written     {path.relative_to(ROOT)}: {', '.join(made)}")
    if left:
        raise SystemExit(f"no page has a place for {', '.join(sorted(left))}")
    draw_picture(PICTURE, [panel(title, TABLES[name]) for name, title in PANELS.items()])
    print(f"drawn       {PICTURE.relative_to(ROOT)}")


def panel(title: str, asked: Table) -> Panel:
    """Return the panel of a table: its first metric over FLOPs, of the arms that are trained."""
    found, measured = finished(asked)
    metric, text = next(iter(asked.metrics.items()))
    dots = {
        name: Dot(spent, [100 * value for value in row.values(metric)])
        for name, row in measured.items()
        if (spent := flops_of(found, name))
    }
    alone = Curve("labels alone", [dots[name] for name in asked.lengths if name in dots])
    others = [Curve(asked.arms[name], [dot]) for name, dot in dots.items()
              if name not in asked.lengths]  # fmt: skip
    return Panel(title, f"{text} [%]", [alone, *others])


def finished(asked: Table) -> tuple[list[Member], dict[str, table.Row]]:
    """Return the members of a table's sweep, and the rows of its arms that have results."""
    found = archive.attached(members.expand(SWEEPS / f"{asked.sweep}.py", Path("nowhere")), RESULTS)
    rows = {label: row for row in table.rows(found, "") for label in row.labels}
    measured = {
        name: joined(rows, asked, name) for name in asked.arms if name in rows or asked.after
    }
    return found, {name: row for name, row in measured.items() if row and row.results}


def lines(asked: Table, times: dict[str, float]) -> list[str]:
    """Return a table in Markdown; times: of the sweep's arms, see arm_times.py."""
    found, measured = finished(asked)
    first = next(iter(asked.metrics))
    if not measured:
        return ["Not run yet."]
    best = max(asked.lengths, key=lambda name: mean_of(measured.get(name), first), default="")
    others = {"equal FLOPs": asked.equal, "best length": best}
    others = {title: arm for title, arm in others.items() if arm in measured}
    heads = ["arm", "seeds", "TFLOPs", *["time"] * bool(times), *asked.metrics.values()]
    heads += [f"to {title}" for title in others]
    out = [row_of(heads), row_of(["---"] * len(heads))]
    for name, row in measured.items():
        spent = flops_of(found, name)
        cells = [asked.arms[name], str(len(row.results)), f"{spent:.2f}" if spent else ""]
        if times:
            own = times.get(name, 0.0) / times[asked.equal]
            cells.append(f"{own:.2f}" if own else "")
        cells += [table.format_mean(row, metric).strip() if row.values(metric) else ""
                  for metric in asked.metrics]  # fmt: skip
        for title, arm in others.items():
            of_labels = name in asked.lengths and (name == arm or title == "best length")
            cells.append("" if of_labels else interval(row, measured[arm], first))
        out.append(row_of(cells))
    return out


def joined(rows: dict[str, table.Row], asked: Table, name: str) -> table.Row | None:
    """Return the row of an arm, with the results of its frozen encoder if others measure it."""
    own, after = rows.get(name), rows.get(asked.after + name)
    if not asked.after or after is None:
        return own
    of_own = dict(zip(own.seeds, own.results, strict=True)) if own else {}
    first, *_ = asked.metrics
    results = tuple(
        of_own.get(seed, {}) | {metric: x for metric, x in result.items() if metric == first}
        for seed, result in zip(after.seeds, after.results, strict=True)
    )
    return dataclasses.replace(after, results=results)


def mean_of(row: table.Row | None, metric: str) -> float:
    mean = row.mean(metric) if row else None
    return -1.0 if mean is None else mean


def interval(row: table.Row, other: table.Row, metric: str) -> str:
    """Return a difference and its interval, in points; empty without two seeds."""
    found = table.difference(row, other, metric)
    if found is None:
        return ""
    mean, low, high = (f"{100 * value:+.2f}" for value in found[:3])
    return f"{mean} ({low} to {high})"


def flops_of(found: Sequence[Member], arm: str) -> float:
    """Return the FLOPs of all steps of an arm, in units of 10^12, with those it begins after.

    0 if no arm of the sweep is called so, as an encoder that was not trained.
    """
    for member in found:
        if arm in member.arms:
            before = members.begins_after(member, found)
            every = [member, before] if before else [member]
            return sum(one.flops for one in cost.costs(every)) / 1e12
    return 0.0


def row_of(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
