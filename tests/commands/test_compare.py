"""Comparisons: the tests against plain computations, and the command on two networks and a small video set."""

import math
from dataclasses import replace
from fractions import Fraction
from itertools import product
from statistics import NormalDist, fmean, stdev, variance

import numpy as np
import pytest
import torch
from scipy import stats

from selfpatch_bench.benchmarks import UserError
from selfpatch_bench.benchmarks.backbones.encoder import Encoder
from selfpatch_bench.benchmarks.commands.compare import compare_command, compare_text, describe_differences, verdict_of
from selfpatch_bench.benchmarks.metrics import significance
from selfpatch_bench.benchmarks.metrics.significance import mcnemar, pack, sign_flip, unpack, welch
from selfpatch_bench.benchmarks.results.record import DataSet, Model, Protocol, Record
from selfpatch_bench.benchmarks.run.runner import Options
from selfpatch_bench.benchmarks.synthetic.scenes import make_videos
from selfpatch_bench.benchmarks.tasks import Metric
from selfpatch_bench.pretrain.common.card import Card
from selfpatch_bench.pretrain.common.weights import save_weights


def t_tail(t: float, df: float) -> float:
    """P(|T| > t) of Student's distribution, by Simpson's rule on the density: accurate far beyond what is asserted."""
    scale = math.gamma((df + 1) / 2) / math.gamma(df / 2) / math.sqrt(df * math.pi)
    x, step = np.linspace(0, t, 20001, retstep=True)
    y = scale * (1 + x**2 / df) ** (-(df + 1) / 2)
    return 1 - 2 * step / 3 * (y[0] + y[-1] + 4 * y[1:-1:2].sum() + 2 * y[2:-1:2].sum())


def test_welch():
    a, b = [41.0, 41.4, 40.7], [42.0, 42.9, 41.5, 42.2]
    verdict = welch(a, b)
    parts = [variance(x) / len(x) for x in (a, b)]
    t = (fmean(b) - fmean(a)) / math.sqrt(sum(parts))
    df = sum(parts) ** 2 / sum(p**2 / (len(x) - 1) for p, x in zip(parts, (a, b), strict=True))
    assert verdict.p == pytest.approx(t_tail(t, df), rel=1e-6)
    assert verdict.difference == pytest.approx(fmean(b) - fmean(a))
    assert verdict.low < verdict.difference < verdict.high
    assert welch([1.0], [1.0, 2.0]) is None
    assert welch([1.0, 1.0], [1.0, 1.0]) is None


@pytest.mark.parametrize("seed", range(4))
def test_welch_is_scipys(seed):
    noise = np.random.default_rng(seed)
    a, b = noise.normal(40, 1, 2 + seed), noise.normal(41, 3, 5 - seed)
    ours, theirs = welch(a, b), stats.ttest_ind(b, a, equal_var=False)
    interval = theirs.confidence_interval(0.95)
    assert (ours.p, ours.low, ours.high) == pytest.approx((theirs.pvalue, interval.low, interval.high), rel=1e-9)


def one_each(gaps) -> tuple[list, list]:
    """Sequences of a single object whose scores differ by so much."""
    return [[50.0] for _ in gaps], [[50.0 + g] for g in gaps]


def counted(a, b) -> Fraction:
    """The share of sign patterns that are as far from zero, by counting them all in exact arithmetic."""
    gaps = [sum(map(Fraction, y)) - sum(map(Fraction, x)) for x, y in zip(a, b, strict=True)]
    sums = [abs(sum(s * g for s, g in zip(signs, gaps, strict=True))) for signs in product((1, -1), repeat=len(gaps))]
    return Fraction(sum(s >= abs(sum(gaps)) for s in sums), len(sums))


@pytest.mark.parametrize("seed", range(6))
def test_sign_flip_is_the_count_of_all_patterns(seed):
    """Sequences of one to four objects: every sequence's sum keeps or changes its sign as a whole."""
    noise = np.random.default_rng(seed)
    a = [noise.integers(0, 400, noise.integers(1, 5)) / 4 for _ in range(6 + seed)]  # quarters: no rounding
    b = [x + noise.integers(-20, 30, len(x)) / 4 for x in a]
    verdict = sign_flip(a, b)
    assert verdict.p == pytest.approx(float(counted(a, b)), abs=1e-12)
    assert verdict.difference == pytest.approx(np.mean(np.concatenate(b)) - np.mean(np.concatenate(a)))
    assert verdict.n == 6 + seed
    assert f"over {6 + seed} sequences, {sum(map(len, a))} objects" in verdict.how


@pytest.mark.parametrize("n", [6, 13, 20, 21, 30, 500])
def test_sign_flip_of_ranks_is_wilcoxons_test(n):
    """Exact up to 20 sequences; beyond, 100,000 draws come within five of their standard errors."""
    noise = np.random.default_rng(n)
    ranks = (1 + noise.permutation(n)) * np.where(noise.random(n) < 0.5 + 0.6 / math.sqrt(n), 1.0, -1.0)
    wanted = float(stats.wilcoxon(ranks, method="exact").pvalue)
    ours = sign_flip(*one_each(ranks))
    within = 5 * math.sqrt(wanted / 100_000) + 1e-5 if n > 20 else 1e-12
    assert ours.p == pytest.approx(wanted, abs=within)
    assert ("draws" in ours.how) == (n > 20)
    assert sign_flip(*one_each(ranks)) == ours


def test_equal_differences_stay_equal_though_they_are_rounded():
    """All of one size, the test is that of a coin; the scores' rounding errors are as large as the differences' own."""
    noise = np.random.default_rng(3)
    for size in (0.1, 1e-3, 1e-7):
        a = noise.uniform(0, 100, 12)
        b = a + size * np.where(np.arange(12) < 9, 1, -1)
        assert sign_flip(a[:, None], b[:, None]).p == pytest.approx(stats.binomtest(9, 12).pvalue)


def test_what_the_smallest_p_is():
    """All of one sign is the farthest pattern; it and its opposite are 2 of 2^n. A sequence without a difference has no
    sign. Beyond 20, the draws are the limit."""
    for n in (6, 9, 20):
        verdict = sign_flip(*one_each(np.arange(n) + 1.0))
        assert verdict.p == pytest.approx(2 / 2**n)
        assert f"smallest attainable p {2 / 2**n:.2g}" in verdict.how
    some = sign_flip(*one_each([1, 2, 0, 3, 0, 0, 0, 4]))
    assert some.p == pytest.approx(2 / 2**4)
    assert "smallest attainable p 0.12" in some.how
    many = sign_flip(*one_each(np.arange(30) + 1.0))
    assert many.p == pytest.approx(1 / 100_001)
    assert "smallest attainable p 1e-05" in many.how
    same = sign_flip(*one_each([0.0] * 8))
    assert (same.difference, same.p, same.low, same.high) == (0, 1, 0, 0)


def test_fewer_than_six_pairs_are_too_few():
    for n in range(1, 6):
        assert sign_flip(*one_each([5.0] * n)).p is None
        assert mcnemar([False] * n, [True] * n).p is None
    assert sign_flip(*one_each([5.0] * 6)).p == pytest.approx(0.03125)
    assert mcnemar([False] * 6, [True] * 6).p == pytest.approx(0.03125)
    for a, b in (([[1.0]], [[1.0], [2.0]]), ([[1.0, 2.0]], [[1.0]]), ([], []), ([[]], [[]])):
        with pytest.raises(UserError, match="cannot be paired"):
            sign_flip(a, b)


def test_interval_is_that_of_all_resamplings_of_sequences():
    """Six sequences can be drawn in 46,656 ways; 10,000 draws find the ends between their neighbouring percentiles."""
    sizes, gaps = np.array([1, 5, 2, 1, 3, 2]), np.array([4.0, -3.0, 1.0, 2.0, 6.0, -1.5])
    every = np.array(list(product(range(6), repeat=6)))
    means = gaps[every].sum(1) / sizes[every].sum(1)
    found = sign_flip([[50.0] * n for n in sizes], [[50 + g / n] * n for n, g in zip(sizes, gaps, strict=True)])
    assert np.percentile(means, 2) < found.low < np.percentile(means, 3)
    assert np.percentile(means, 97) < found.high < np.percentile(means, 98)


def test_interval_of_many_sequences_is_close_to_the_normal_one():
    gaps = np.random.default_rng(1).normal(0.3, 1.0, 400)
    verdict = sign_flip(*one_each(gaps))
    half = NormalDist().inv_cdf(0.975) * stdev(gaps) / 20
    assert verdict.low == pytest.approx(gaps.mean() - half, abs=0.15 * half)
    assert verdict.high == pytest.approx(gaps.mean() + half, abs=0.15 * half)


def video(scores: list[list[float]], name="a") -> Record:
    """A record of a video task: per sequence the objects' J (and F, the same), 0 to 1."""
    parts = {
        f"s{i}": {str(o + 1): {"J": {"mean": float(x)}, "F": {"mean": float(x)}} for o, x in enumerate(one)}
        for i, one in enumerate(scores)
    }
    mean = 100 * fmean(float(x) for one in scores for x in one)
    metrics = dict.fromkeys(("JF_m", "J_m", "F_m"), mean)
    return record(name, metrics=metrics, parts={"sequences": parts})


def chance(noise, n: int, better: float = 0.0) -> tuple[list, list]:
    """Scores of two models on n sequences of 1 to 8 objects: a sequence's objects go up and down together, by heavy and
    skewed amounts, the same for both models but for `better`."""
    made = [], []
    for size in noise.integers(1, 9, n):
        for scores, plus in zip(made, (0.0, better), strict=True):
            scores.append(0.6 + plus + 0.02 * noise.standard_exponential() ** 2 + 0.01 * noise.normal(size=size))
    return made


@pytest.fixture
def few_draws(monkeypatch):
    """Enough for a rate over many trials: a test by random draws keeps its level with any number of them."""
    monkeypatch.setattr(significance, "DRAWS", 999)
    monkeypatch.setattr(significance, "RESAMPLES", 100)


@pytest.mark.parametrize("n", [6, 10, 30])
def test_chance_is_called_a_difference_in_at_most_five_of_a_hundred(few_draws, n):
    noise, trials = np.random.default_rng(n), 1500
    found = 0
    for _ in range(trials):
        a, b = (video(scores) for scores in chance(noise, n))
        found += verdict_of([a], [b], "JF_m").p <= 0.05
    assert found / trials <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / trials)


def test_a_difference_is_found(few_draws):
    """Ten sequences on which one model is better by about the standard deviation of a sequence's difference."""
    noise, trials, found = np.random.default_rng(0), 300, 0
    for _ in range(trials):
        a, b = (video(scores) for scores in chance(noise, 10, better=0.13))
        found += verdict_of([a], [b], "JF_m").p <= 0.05
    assert found / trials > 0.8


def test_the_difference_that_is_tested_is_the_one_printed():
    """Over all objects, not over sequences: one with many objects weighs more; J and F alone likewise."""
    noise = np.random.default_rng(5)
    a, b = (video(scores, name) for name, scores in zip("ab", chance(noise, 8, better=0.03), strict=True))
    for metric in ("JF_m", "J_m", "F_m"):
        gap = b.metrics[metric] - a.metrics[metric]
        verdict = verdict_of([a], [b], metric)
        assert verdict.difference == pytest.approx(gap, rel=1e-9)
        assert f"{gap:+.2f} | p = {verdict.p:.2g}, 95 % " in compare_text("davis", [Metric(metric)], [[a], [b]])
    other = video([[0.5]] * 8, "b")
    assert verdict_of([a], [other], "JF_m") is None  # other objects: nothing pairs
    seeds = [[a, replace(a, metrics={"JF_m": 3.0})], [b]]
    assert verdict_of(*seeds, "JF_m") is None  # the mean over seeds is not the parts' of one of them
    assert verdict_of([a, a], [b, b], "JF_m") == verdict_of([a], [b], "JF_m")  # a seed that changes nothing


def test_two_objects_are_too_few_to_tell():
    a, b = video([[0.5, 0.6]]), video([[0.7, 0.8]], "b")
    text = compare_text("davis", [Metric("JF_m")], [[a], [b]])
    assert "+20.00 | too few to tell (sequences: 1, and a test needs 6) |" in text
    assert "p =" not in text


def test_mcnemar():
    a = [True] * 50 + [True] * 3 + [False] * 12 + [False] * 35
    b = [True] * 50 + [False] * 3 + [True] * 12 + [False] * 35
    verdict = mcnemar(a, b)
    exact = 2 * sum(math.comb(15, k) for k in range(4)) / 2**15
    assert verdict.p == pytest.approx(exact, rel=1e-12)
    assert verdict.difference == pytest.approx(9.0)
    assert mcnemar(a, a).p == 1
    with pytest.raises(UserError, match="cannot be paired"):
        mcnemar(a, b[1:])


@pytest.mark.parametrize("seed", range(4))
def test_mcnemar_is_scipys(seed):
    a, b = np.random.default_rng(seed).random((2, 300)) < [[0.6], [0.6 + seed / 20]]
    only = int((b & ~a).sum()), int((a != b).sum())
    assert mcnemar(a, b).p == pytest.approx(stats.binomtest(*only).pvalue, rel=1e-12)


@pytest.mark.parametrize("count", [1, 8, 13])
def test_flags_survive_packing(count):
    flags = np.arange(count) % 3 == 0
    assert np.array_equal(unpack(pack(flags), count), flags)
    with pytest.raises(UserError, match="damaged"):
        unpack(pack(flags), count + 8)


def record(name="a", value=50.0, seed=0, parts=None, **changes) -> Record:
    made = Record(
        key="0" * 16,
        model=Model(name, f"sha256:{name}", {"mean": [0.5] * 3}),
        task="knn",
        version=1,
        protocol=Protocol("p-v1", {"k": 20}, effective={}),
        data=DataSet(fingerprint="sha256:1"),
        seed=seed,
        metrics={"top1": value},
        parts=parts or {},
    )
    return replace(made, **changes)


def test_conditions_that_differ_come_first():
    conditions = {"protocol": Protocol("p-v1", {"k": 10}, effective={}), "data": DataSet(fingerprint="sha256:2")}
    model = Model("b", "sha256:b", {"mean": [0.4] * 3})
    other = record("b", model=model, limit=3, version=2, **conditions)
    said = "\n".join(describe_differences([[record()], [other]]))
    for part in ("protocol value k: 20 | 10", "limit", "network mean", "data fingerprint", "task version: 1 | 2"):
        assert part in said
    text = compare_text("knn", [Metric("top1")], [[record()], [other]])
    assert text.index("conditions differ") < text.index("| metric |")
    assert "no test" in text  # other data: the images do not pair
    assert not describe_differences([[record()], [record("b")]])


def test_what_makes_a_number_doubtful_is_said():
    assert "b: grey masks\n" in compare_text(
        "knn", [Metric("top1")], [[record()], [record("b", doubts=["grey masks"])]]
    )


def test_seeds_images_and_noise_in_words():
    a, b = ([record(n, v + s, s) for s, v in enumerate((50.0, 51.5, 50.2))] for n in "ab")
    assert "Welch's t-test over 3 and 3 seeds" in compare_text("knn", [Metric("top1")], [a, b])
    flags = [np.arange(40) < n for n in (20, 29)]
    one, two = (
        record(n, 100 * f.mean(), parts={"images": 40, "correct": {"top1": pack(f)}})
        for n, f in zip("ab", flags, strict=True)
    )
    text = compare_text("knn", [Metric("top1", noise=30.0)], [[one], [two]])
    assert "| (J&F)_m" not in text
    assert "+22.50 | within the noise of 30.0; p = 0.0039 (McNemar's exact test, 0 against 9 of 40 images)" in text


def test_runs_that_are_the_same_are_no_sample():
    """Three seeds of a task that does not draw: no deviation, no t-test, but the test of what it is made of."""
    flags = [np.arange(40) < n for n in (20, 29)]
    same, other = (
        [record(n, 100 * f.mean(), s, parts={"images": 40, "correct": {"top1": pack(f)}}) for s in range(3)]
        for n, f in zip("ab", flags, strict=True)
    )
    text = compare_text("knn", [Metric("top1")], [same, other])
    assert "±" not in text
    assert "Welch" not in text
    assert "McNemar" in text
    drawn = [record("b", v, s) for s, v in enumerate((50.0, 51.5, 50.2))]
    text = compare_text("knn", [Metric("top1")], [same, drawn])
    assert "50.57 ± 0.81 (3)" in text
    assert "Welch" not in text


def test_the_command_runs_what_is_missing_and_pairs_objects(tmp_path, capsys):
    data = make_videos(tmp_path / "videos", sequences=6, frames=3, size=(120, 208))
    card = Card("vit", 16, 24, 1, 2, pos="learned 4x4", mean=(0.5,) * 3, std=(0.5,) * 3)
    files = []
    for seed in range(2):
        torch.manual_seed(seed)
        files.append(tmp_path / f"net{seed}.safetensors")
        save_weights(files[-1], Encoder(card).vit.state_dict(), card, {})
    options = Options(data=[str(data)], out=tmp_path / "out", device="cpu", overrides=["size=128"])
    for _ in range(2):  # the second time nothing is run
        assert compare_command(files, ["davis"], options) == 0
        text = capsys.readouterr().out
        assert "The conditions are the same." in text
        assert "exact sign-flip test over 6 sequences" in text
        assert "smallest attainable p 0.031" in text
        assert text.count("| (J&F)_m |") == 1
    assert len(list((tmp_path / "out/records/davis").glob("*.json"))) == 2
    with pytest.raises(UserError, match="two checkpoints"):
        compare_command(files[:1], ["davis"], options)
