"""How good a ranking is: average precision as the retrieval benchmarks compute it. Pure functions on ranks."""

from collections.abc import Sequence

import numpy as np


def average_precision(ranks: Sequence[int], positives: int) -> float:
    """Area below the precision-recall curve, trapezoids between successive positives: 0 to 1.

    ranks: places (from 0) of the positives that were found, in rising order. positives: how many there are; what was
    not found lowers the area. Source: facebookresearch/dino 7c446df, eval_copy_detection.py and utils.py
    (`compute_ap`), as in filipradenovic/revisitop.
    """
    ranks = np.asarray(ranks, np.float64)
    if not positives:
        raise ValueError("a query without positives has no average precision")
    found = np.arange(len(ranks))
    before = np.divide(found, ranks, out=np.ones(len(ranks)), where=ranks > 0)
    return float((before + (found + 1) / (ranks + 1)).sum() / 2 / positives)


def precision_at(ranks: Sequence[int], k: int) -> float:
    """Share of positives among the first k, or, where the last positive comes earlier, up to it. Source: `compute_map`
    of the same."""
    ranks = np.asarray(ranks)
    last = min(int(ranks.max()) + 1, k)
    return float((ranks < last).sum() / last)


def places(ranking: np.ndarray, positives: np.ndarray, junk: np.ndarray) -> np.ndarray:
    """Places (from 0) of the positives in a ranking [n] of picture numbers from which junk is taken away first."""
    kept = ranking[~np.isin(ranking, junk)]
    return np.flatnonzero(np.isin(kept, positives))
