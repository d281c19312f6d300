"""Is a difference more than chance? Small tests on what records hold; all p-values are two-sided."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...pretrain.common.errors import UserError

FEWEST = 6  # pairs: even if all of five point the same way, that is chance in 2 of 32 cases, which is above 5 %
EXACT = 20  # sequences up to which all patterns of signs are looked at
DRAWS = 100_000  # random patterns beyond
RESAMPLES = 10_000
BLOCK = 2**20  # numbers


@dataclass(frozen=True)
class Verdict:
    """A difference b - a, in the metric's unit. low, high: its 95 % interval (None: the test gives none). p: of no
    difference at all; None: too few pairs to tell. n: what was counted. how: the test in words."""

    difference: float
    p: float | None
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


def sign_flip(a: Sequence[Sequence[float]], b: Sequence[Sequence[float]], of: str = "sequences") -> Verdict:
    """Randomisation test of the mean over all objects, by sequences: the objects of one video stand and fall together.

    a, b: for every sequence the scores of its objects under both models, in the same order. Were the models equal, each
    sequence's difference could as well have had the other sign. p is the share of all patterns of signs whose
    difference is as far from zero as the one seen (Fisher 1935; Ernst 2004, Statistical Science 19): of all 2^n up to
    EXACT sequences, beyond of DRAWS random ones. The interval is the percentile one of a bootstrap over sequences.
    of: what the groups are called; where each has one score (a query's), objects are not counted. Raises UserError
    where the two do not pair.
    """
    if [len(x) for x in a] != [len(x) for x in b] or not len(a) or not all(map(len, a)):
        raise UserError(f"{sum(map(len, a))} and {sum(map(len, b))} objects cannot be paired")
    sizes = np.array([len(x) for x in a])
    gaps = np.array([sum(y) - sum(x) for x, y in zip(a, b, strict=True)], np.float64)
    n, objects, seen = len(gaps), int(sizes.sum()), float(gaps.sum())
    if n < FEWEST:
        return _too_few(seen / objects, n, of)
    # Rounding must not tell equal differences apart: it is as large as the scores, not as the differences.
    slack = 1e-12 * sum(abs(s) for scores in (a, b) for one in scores for s in one)
    smallest = min(1.0, 2.0 ** (1 - np.count_nonzero(np.abs(gaps) > slack)))  # a pattern, and the opposite one
    if n <= EXACT:
        p, how = float(np.mean(np.abs(_all_flips(gaps)) >= abs(seen) - slack)), "exact sign-flip test"
    else:
        rng = np.random.default_rng(0)
        flips = (rng.integers(0, 2, (rows, n), np.int8) * 2 - 1 for rows in _blocks(DRAWS, n))
        beyond = sum(np.count_nonzero(np.abs(signs @ gaps) >= abs(seen) - slack) for signs in flips)
        p, how = (beyond + 1) / (DRAWS + 1), f"sign-flip test with {DRAWS:,} draws"
        smallest = max(smallest, 1 / (DRAWS + 1))
    counted = f"{n} {of}" if objects == n and of != "sequences" else f"{n} {of}, {objects} objects"
    how += f" over {counted}; smallest attainable p {smallest:.2g}"
    return Verdict(seen / objects, p, n, how, *_interval(gaps, sizes))


def _all_flips(gaps: np.ndarray) -> np.ndarray:
    """Sums of [n] gaps with all patterns of signs, float64 [2^(n-1)]: the other half are their opposites."""
    sums = gaps[:1]
    for gap in gaps[1:]:
        sums = np.concatenate((sums + gap, sums - gap))
    return sums


def _interval(gaps: np.ndarray, sizes: np.ndarray) -> tuple[float, float]:
    """95 % interval of sum(gaps) / sum(sizes) over sequences that are drawn with replacement."""
    rng, means = np.random.default_rng(0), []
    for rows in _blocks(RESAMPLES, len(gaps)):
        picks = rng.integers(0, len(gaps), (rows, len(gaps)))
        means.append(gaps[picks].sum(1) / sizes[picks].sum(1))
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5])
    return float(low), float(high)


def _blocks(total: int, width: int) -> list[int]:
    """Numbers of rows that add up to `total`, few enough of `width` numbers each to be held at once."""
    rows = max(1, BLOCK // width)
    return [min(rows, total - done) for done in range(0, total, rows)]


def _too_few(difference: float, n: int, what: str) -> Verdict:
    return Verdict(difference, None, n, f"{what}: {n}, and a test needs {FEWEST}")


def mcnemar(a: Sequence[bool], b: Sequence[bool]) -> Verdict:
    """McNemar's exact test: of the images that only one of two classifiers gets right, is either's share above half?

    a, b: right or wrong, the same images in the same order. The difference is in percent of all images.
    """
    from scipy import stats

    a, b = np.asarray(a, bool), np.asarray(b, bool)
    if a.shape != b.shape or not a.size:
        raise UserError(f"{a.size} and {b.size} images cannot be paired")
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    if a.size < FEWEST:
        return _too_few(100 * (only_b - only_a) / a.size, a.size, "images")
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
