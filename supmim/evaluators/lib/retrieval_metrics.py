"""What a ranking is worth: one definition each, of relevance in rank order.

Shapes: Q queries, R ranks; relevant: bool [Q, R], best first; positives: int [Q], how many there
are in all, ranked or not. Each gives one value per query, [Q]. A query without positives has no
value: NaN, which `mean` leaves out.
"""

import numpy as np


def mean(values: np.ndarray) -> float:
    """Over the queries that have a value; NaN if none has."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


def known(results: dict[str, float]) -> dict[str, float]:
    """The results that have a value."""
    return {name: value for name, value in results.items() if not np.isnan(value)}


def recall_at(relevant: np.ndarray, positives: np.ndarray, k: int) -> np.ndarray:
    """R@k of Stanford Online Products (arXiv 1511.06452): 1 if any of the first k is relevant."""
    return _known(relevant[:, :k].any(axis=1), positives)


def precision_at(relevant: np.ndarray) -> np.ndarray:
    """Precision after each rank, [Q, R]."""
    return relevant.cumsum(axis=1) / np.arange(1, relevant.shape[1] + 1)


def average_precision(relevant: np.ndarray, positives: np.ndarray) -> np.ndarray:
    """AP: precision at every relevant rank, summed, by the number of positives."""
    total = (precision_at(relevant) * relevant).sum(axis=1)
    return _known(total / np.maximum(positives, 1), positives)


def average_precision_at(relevant: np.ndarray, positives: np.ndarray, k: int) -> np.ndarray:
    """AP@k of Google Landmarks v2 (arXiv 2004.01804): by min(positives, k)."""
    top = relevant[:, :k]
    total = (precision_at(top) * top).sum(axis=1)
    return _known(total / np.maximum(np.minimum(positives, k), 1), positives)


def average_precision_at_r(relevant: np.ndarray, positives: np.ndarray) -> np.ndarray:
    """AP@R (arXiv 2003.08505): the first R ranks alone, by R, the query's number of positives."""
    within = np.arange(relevant.shape[1]) < positives[:, None]
    total = (precision_at(relevant) * relevant * within).sum(axis=1)
    return _known(total / np.maximum(positives, 1), positives)


def modified_precision_at(relevant: np.ndarray, positives: np.ndarray, k: int) -> np.ndarray:
    """mMP@k of UnED (arXiv 2309.01858): right ones in the top min(k, positives), by that number."""
    depth = np.minimum(k, positives)
    within = np.arange(relevant.shape[1]) < depth[:, None]
    return _known((relevant & within).sum(axis=1) / np.maximum(depth, 1), positives)


def without_junk(ranking: np.ndarray, positives: np.ndarray, junk: np.ndarray) -> np.ndarray:
    """Relevance [R] of a ranking of ids once junk is taken out of it."""
    return np.isin(ranking, positives)[~np.isin(ranking, junk)]


def trapezoid_average_precision(relevant: np.ndarray, positives: int) -> float:
    """AP of one query of the revisited Oxford and Paris (arXiv 1803.11285), junk taken out.

    The area under precision over recall by the trapezoid rule: each relevant rank counts the mean
    of the precision just before it, 1 at the first rank, and at it.
    """
    if not positives:
        return float("nan")
    ranks = np.flatnonzero(relevant)
    before = np.where(ranks == 0, 1.0, np.arange(len(ranks)) / np.maximum(ranks, 1))
    after = np.arange(1, len(ranks) + 1) / (ranks + 1)
    return float(((before + after) / 2).sum() / positives)


def capped_precision(relevant: np.ndarray, positives: int, k: int) -> float:
    """mP@k of the same: precision at k, or at the last positive's rank if that comes earlier."""
    if not positives:
        return float("nan")
    ranks = np.flatnonzero(relevant)
    depth = min(k, ranks[-1] + 1) if len(ranks) else k
    return float(relevant[:depth].sum() / depth)


def _known(values: np.ndarray, positives: np.ndarray) -> np.ndarray:
    return np.where(positives > 0, values, np.nan)
