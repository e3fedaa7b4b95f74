"""The table of a sweep: a row for each arm, the members that differ only in their seeds."""

import csv
import dataclasses
import difflib
import io
import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from supmim import config as config_lib
from supmim.config import Config
from supmim.config.option import Value
from supmim.errors import ConfigError, counted, suggestion
from supmim.report import units
from supmim.sweeps.members import MEMBER, Member, begins_after, without_seeds


@dataclasses.dataclass(frozen=True)
class Row:
    """Members that differ only in their seeds.

    labels: the names of their arms. results, seeds: of the finished members. planned: their number.
    """

    labels: tuple[str, ...]
    results: tuple[dict[str, float], ...]
    planned: int
    seeds: tuple[tuple[int, int], ...] = ()

    def values(self, metric: str) -> list[float]:
        """Return one value per finished member."""
        return [results[metric] for results in self.results if metric in results]

    def mean(self, metric: str) -> float | None:
        values = self.values(metric)
        return statistics.fmean(values) if values else None

    def spread(self, metric: str) -> float | None:
        """Return the sample standard deviation, if there are at least two values."""
        values = self.values(metric)
        return statistics.stdev(values) if len(values) > 1 else None


class Difference(NamedTuple):
    """Mean of paired differences over seeds, and the ends of its 95 % interval by Student's t."""

    mean: float
    low: float
    high: float
    pairs: int


def difference(row: Row, other: Row, metric: str) -> Difference | None:
    """Return by how much a row exceeds another; None without two seeds that both have finished."""
    of_each = [
        {seed: r[metric] for seed, r in zip(one.seeds, one.results, strict=True) if metric in r}
        for one in (row, other)
    ]
    both = of_each[0].keys() & of_each[1].keys()
    found = [of_each[0][seed] - of_each[1][seed] for seed in sorted(both)]
    if len(found) < 2:
        return None
    from scipy import stats

    mean, error = statistics.fmean(found), statistics.stdev(found) / math.sqrt(len(found))
    reach = float(stats.t.ppf(0.975, len(found) - 1)) * error
    return Difference(mean, mean - reach, mean + reach, len(found))


def rows(members: Sequence[Member], metric: str) -> list[Row]:
    """Return the rows by the mean of a metric, highest first; rows without results come last.

    metric: "" keeps the order of the members. ConfigError if members are finished and none has it.
    """
    groups: dict[Config, list[Member]] = {}
    of_arm: dict[str, Config] = {}  # differences within an arm must come from its seeds
    for member in members:
        # Only members that were started know the number of classes of their source.
        same: dict[str, Value] = {"classifier.num_classes": 0}
        if first := begins_after(member, members):  # of one seed: the arm is what seeds share
            same["init.model"] = MEMBER + first.arms[0]
        config = config_lib.replaced(without_seeds(member.config), same)
        groups.setdefault(of_arm.setdefault(member.arms[0], config), []).append(member)
    found = [row_of(group) for group in groups.values()]
    known = {name for row in found for results in row.results for name in results}
    if known and metric and metric not in known:
        close = difflib.get_close_matches(metric, known, n=1)
        names = ", ".join(units.ordered(known))
        hint = f"did you mean {close[0]}?" if close else f"it takes {names}"
        raise ConfigError(f"--metric={metric} is not among the results; {hint}")

    def rank(row: Row) -> float:
        mean = row.mean(metric)
        return -math.inf if mean is None else mean

    return sorted(found, key=rank, reverse=True)


def row_of(group: Sequence[Member]) -> Row:
    """Return one row, labelled with the arms of its members."""
    names = [arm for member in group for arm in member.arms]
    finished = [member for member in group if member.results]
    results = tuple(member.results for member in finished)
    seeds = tuple((member.config.seed, member.config.data.seed) for member in finished)
    return Row(tuple(dict.fromkeys(names)), results, len(group), seeds)


def named(found: Sequence[Row], arm: str) -> Row:
    """Return the row of an arm; ConfigError if there is none."""
    for row in found:
        if arm in row.labels:
            return row
    known = [label for row in found for label in row.labels]
    arms = ", ".join(known)
    raise ConfigError(f"--versus={arm} is not one of the arms: {arms}{suggestion(arm, known)}")


def format_table(found: Sequence[Row], metric: str, versus: str = "") -> str:
    """Return the table as text of at most 80 columns, with fractions in percent.

    versus: an arm; the other rows then have their difference to it.
    """
    other = named(found, versus) if versus else None
    width = max(len(label) for row in found for label in row.labels)
    lines = [f"{'member':<{width}}    n  {units.with_unit(metric)}"]
    for row in found:
        share = f"{len(row.results)}/{row.planned}"
        lines.append(f"{row.labels[0]:<{width}}  {share:>3}  {format_mean(row, metric)}")
        lines += [f"  = {label}" for label in row.labels[1:]]
        if other and row is not other and (found_one := difference(row, other, metric)):
            lines.append(f"  {format_difference(found_one, metric)}")
    if versus:
        lines.append(f"differences to {versus}, paired by seed, with their 95 % t-interval")
    lines.append("mean +- sample standard deviation over seeds; n: finished of planned")
    return "\n".join(lines)


def format_mean(row: Row, metric: str) -> str:
    """Return `mean +- spread` of a row, as far as they exist."""
    mean, spread = row.mean(metric), row.spread(metric)
    scale, form = (100, "6.2f") if units.is_share(metric) else (1, ".4g")
    if mean is None:
        return "missing"
    around = ".2f" if scale == 100 else ".2g"
    return f"{scale * mean:{form}}" + ("" if spread is None else f" +- {scale * spread:{around}}")


def format_difference(found: Difference, metric: str) -> str:
    """Return e.g. `+9.40, from 5.20 to 13.60, 3 seeds`."""
    scale, form = (100, "+.2f") if units.is_share(metric) else (1, "+.4g")
    mean, low, high = (f"{scale * value:{form}}" for value in found[:3])
    return f"{mean}, from {low} to {high}, {counted(found.pairs, 'seed')}"


def csv_text(found: Sequence[Row]) -> str:
    """Return all metrics of all rows, in the units of results.json, as CSV."""
    metrics = units.ordered({name for row in found for results in row.results for name in results})
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    columns = [f"{metric} {what}" for metric in metrics for what in ("mean", "std")]
    writer.writerow(["member", "also", "finished", "planned", *columns])
    for row in found:
        numbers = [value for m in metrics for value in (row.mean(m), row.spread(m))]
        also = " ".join(row.labels[1:])
        writer.writerow([row.labels[0], also, len(row.results), row.planned, *numbers])
    return file.getvalue()
