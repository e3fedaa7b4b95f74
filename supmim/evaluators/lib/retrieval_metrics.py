"""Metrics of a ranking, one definition each, from relevance in rank order.

Shapes: Q queries, R ranks; relevant: bool [Q, R], best first; positives: int [Q], their number in
all, ranked or not. Metrics are one value per query, [Q], and NaN for a query without positives,
which `mean` leaves out.
"""

import numpy as np
from numpy.typing import ArrayLike


def mean(values: np.ndarray) -> float:
    """Return the mean over queries that have a value; NaN if none has."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


def known(results: dict[str, float]) -> dict[str, float]:
    """Return the results that are not NaN."""
    return {name: value for name, value in results.items() if not np.isnan(value)}


def recall_at(relevant: np.ndarray, positives: np.ndarray, k: int) -> np.ndarray:
    """Return R@k of Stanford Online Products (arXiv 1511.06452): 1 for a hit in the first k."""
    return _known(relevant[:, :k].any(axis=1), positives)


def precision_at(relevant: np.ndarray) -> np.ndarray:
    """Return the precision after each rank, [Q, R]."""
    return relevant.cumsum(axis=1) / np.arange(1, relevant.shape[1] + 1)


def average_precision(relevant: np.ndarray, positives: np.ndarray) -> np.ndarray:
    """Return AP: the precision at every relevant rank, summed and divided by the positives."""
    total = (precision_at(relevant) * relevant).sum(axis=1)
    return _known(total / np.maximum(positives, 1), positives)


def average_precision_at(relevant: np.ndarray, positives: np.ndarray, k: int) -> np.ndarray:
    """Return AP@k of Google Landmarks v2 (arXiv 2004.01804): divided by min(positives, k)."""
    top = relevant[:, :k]
    total = (precision_at(top) * top).sum(axis=1)
    return _known(total / np.maximum(np.minimum(positives, k), 1), positives)


def average_precision_at_r(relevant: np.ndarray, positives: np.ndarray) -> np.ndarray:
    """Return AP@R (arXiv 2003.08505): AP of the first R ranks, R the number of positives."""
    within = np.arange(relevant.shape[1]) < positives[:, None]
    total = (precision_at(relevant) * relevant * within).sum(axis=1)
    return _known(total / np.maximum(positives, 1), positives)


def modified_precision_at(relevant: np.ndarray, positives: np.ndarray, k: int) -> np.ndarray:
    """Return mMP@k of UnED (arXiv 2309.01858): the precision at rank min(k, positives)."""
    depth = np.minimum(k, positives)
    within = np.arange(relevant.shape[1]) < depth[:, None]
    return _known((relevant & within).sum(axis=1) / np.maximum(depth, 1), positives)


def without_junk(ranking: np.ndarray, positives: np.ndarray, junk: np.ndarray) -> np.ndarray:
    """Return the relevance [R] of a ranking of ids from which junk is removed."""
    return np.isin(ranking, positives)[~np.isin(ranking, junk)]


def trapezoid_average_precision(relevant: np.ndarray, positives: int) -> float:
    """Return AP of one query of the revisited Oxford and Paris (arXiv 1803.11285), junk removed.

    It is the area under precision over recall by the trapezoid rule: each relevant rank counts the
    mean of the precision just before it, 1 at the first rank, and at it.
    """
    if not positives:
        return float("nan")
    ranks = np.flatnonzero(relevant)
    before = np.where(ranks == 0, 1.0, np.arange(len(ranks)) / np.maximum(ranks, 1))
    after = np.arange(1, len(ranks) + 1) / (ranks + 1)
    return float(((before + after) / 2).sum() / positives)


def capped_precision(relevant: np.ndarray, positives: int, k: int) -> float:
    """Return mP@k of the same: precision at k, or at the last positive if that is earlier."""
    if not positives:
        return float("nan")
    ranks = np.flatnonzero(relevant)
    depth = min(k, ranks[-1] + 1) if len(ranks) else k
    return float(relevant[:depth].sum() / depth)


def _known(values: ArrayLike, positives: np.ndarray) -> np.ndarray:
    return np.where(positives > 0, values, np.nan)
