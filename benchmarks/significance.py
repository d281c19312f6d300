"""Is a difference more than chance? Small tests on what records hold; all p-values are two-sided."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .errors import UserError


@dataclass(frozen=True)
class Verdict:
    """A difference b - a, in the metric's unit. low, high: its 95 % interval (None: the test gives none). p: of no
    difference at all. n: what was counted. how: the test in words."""

    difference: float
    p: float
    n: int
    how: str
    low: float | None = None
    high: float | None = None


def welch(a: Sequence[float], b: Sequence[float]) -> Verdict | None:
    """Welch's t-test between the seeds' values of two models; None with fewer than two seeds on a side or no spread."""
    from scipy import stats

    if min(len(a), len(b)) < 2 or not (np.ptp(a) or np.ptp(b)):
        return None
    result = stats.ttest_ind(b, a, equal_var=False)
    interval = result.confidence_interval(0.95)
    difference = float(np.mean(b) - np.mean(a))
    how = f"Welch's t-test over {len(a)} and {len(b)} seeds"
    return Verdict(difference, float(result.pvalue), len(a) + len(b), how, float(interval.low), float(interval.high))


def paired_bootstrap(a: Sequence[float], b: Sequence[float], draws: int = 10_000, seed: int = 0) -> Verdict | None:
    """Resample the pairs (the same objects under both models) with replacement; None with fewer than two pairs.

    The interval is the percentile one. p is the two-sided share of the means, moved to zero difference, that are as far
    from zero as the one seen (Efron and Tibshirani 1993, 16.4), never below 1 / (draws + 1).
    """
    if len(a) != len(b):
        raise UserError(f"{len(a)} and {len(b)} objects cannot be paired")
    if len(a) < 2:
        return None
    gap = np.asarray(b, np.float64) - np.asarray(a, np.float64)
    picks = np.random.default_rng(seed).integers(0, len(gap), (draws, len(gap)))
    means = gap[picks].mean(1)
    seen = gap.mean()
    # A hair of slack: rounding must not tell equal means apart.
    beyond = np.count_nonzero(np.abs(means - seen) >= abs(seen) * (1 - 1e-12))
    low, high = np.percentile(means, [2.5, 97.5])
    how = f"paired bootstrap over {len(gap)} objects"
    return Verdict(float(seen), (beyond + 1) / (draws + 1), len(gap), how, float(low), float(high))


def mcnemar(a: Sequence[bool], b: Sequence[bool]) -> Verdict:
    """McNemar's exact test: of the images that only one of two classifiers gets right, is either's share above half?

    a, b: right or wrong, the same images in the same order. The difference is in percent of all images.
    """
    from scipy import stats

    a, b = np.asarray(a, bool), np.asarray(b, bool)
    if a.shape != b.shape or not a.size:
        raise UserError(f"{a.size} and {b.size} images cannot be paired")
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    p = float(stats.binomtest(only_b, only_a + only_b).pvalue) if only_a + only_b else 1.0
    how = f"McNemar's exact test, {only_a} against {only_b} of {a.size} images"
    return Verdict(100 * (only_b - only_a) / a.size, p, a.size, how)


def pack(correct: Sequence[bool]) -> str:
    """Right or wrong of every image as hexadecimal digits, for a record; see `unpack`."""
    return np.packbits(np.asarray(correct, bool)).tobytes().hex()


def unpack(text: str, count: int) -> np.ndarray:
    """The first `count` flags of `pack`, bool [count]. Raises UserError for a text that holds fewer."""
    try:
        bits = np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8))
    except ValueError:
        raise UserError("a record's list of right and wrong images is damaged") from None
    if len(bits) < count:
        raise UserError("a record's list of right and wrong images is damaged")
    return bits[:count].astype(bool)
