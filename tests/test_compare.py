"""Comparisons: the tests against plain computations, and the command on two networks and a small video set."""

import math
from itertools import product
from statistics import NormalDist, fmean, stdev, variance

import numpy as np
import pytest
import torch

from selfpatch_bench.benchmarks import UserError
from selfpatch_bench.benchmarks.card import Card
from selfpatch_bench.benchmarks.compare import compare_command, compare_text, describe_differences
from selfpatch_bench.benchmarks.encoder import Encoder
from selfpatch_bench.benchmarks.formats import selfpatch_bench as own
from selfpatch_bench.benchmarks.runner import Options
from selfpatch_bench.benchmarks.scenes import make_videos
from selfpatch_bench.benchmarks.significance import mcnemar, pack, paired_bootstrap, unpack, welch
from selfpatch_bench.benchmarks.task import Metric


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


def test_paired_bootstrap_on_few_pairs_is_close_to_all_resamplings():
    """Four pairs have 256 resamplings; 40,000 draws come within 4 standard errors (0.01) of counting them all."""
    gap = [1.0, 2.0, -0.5, 3.0]
    verdict = paired_bootstrap([0.0] * 4, gap, draws=40_000)
    means = [fmean(pick) for pick in product(gap, repeat=4)]
    exact = fmean(abs(m - fmean(gap)) >= fmean(gap) - 1e-9 for m in means)
    assert verdict.p == pytest.approx(exact, abs=0.01)
    assert verdict.difference == pytest.approx(fmean(gap))


def test_paired_bootstrap_on_many_pairs_is_close_to_the_normal_interval():
    gap = np.random.default_rng(1).normal(0.3, 1.0, 400)
    verdict = paired_bootstrap(np.zeros(400), gap)
    half = NormalDist().inv_cdf(0.975) * stdev(gap) / 20
    assert verdict.low == pytest.approx(gap.mean() - half, abs=0.15 * half)
    assert verdict.high == pytest.approx(gap.mean() + half, abs=0.15 * half)
    same = paired_bootstrap(gap, gap)
    assert (same.difference, same.p) == (0, 1)
    assert paired_bootstrap(gap, gap + 5).p == pytest.approx(1 / 10_001)
    with pytest.raises(UserError, match="cannot be paired"):
        paired_bootstrap([1.0, 2.0], [1.0])


def test_mcnemar():
    a = [True] * 50 + [True] * 3 + [False] * 12 + [False] * 35
    b = [True] * 50 + [False] * 3 + [True] * 12 + [False] * 35
    verdict = mcnemar(a, b)
    exact = 2 * sum(math.comb(15, k) for k in range(4)) / 2**15
    assert verdict.p == pytest.approx(exact, rel=1e-12)
    assert verdict.difference == pytest.approx(9.0)
    assert mcnemar(a, a).p == 1


@pytest.mark.parametrize("count", [1, 8, 13])
def test_flags_survive_packing(count):
    flags = np.arange(count) % 3 == 0
    assert np.array_equal(unpack(pack(flags), count), flags)
    with pytest.raises(UserError, match="damaged"):
        unpack(pack(flags), count + 8)


def record(name="a", value=50.0, seed=0, parts=None, **changes) -> dict:
    made = {
        "model": {"name": name, "card": {"mean": [0.5] * 3}},
        "protocol": {"id": "p-v1", "values": {"k": 20}, "effective": {}},
        "data": {"fingerprint": "sha256:1"},
        "limit": None,
        "version": 1,
        "seed": seed,
        "metrics": {"top1": value},
        "parts": parts or {},
    }
    return made | changes


def test_conditions_that_differ_come_first():
    other = record("b", model={"name": "b", "card": {"mean": [0.4] * 3}}, limit=3, version=2)
    other |= {"protocol": {"id": "p-v1", "values": {"k": 10}, "effective": {}}, "data": {"fingerprint": "sha256:2"}}
    said = "\n".join(describe_differences([[record()], [other]]))
    for part in ("protocol value k: 20 | 10", "limit", "network mean", "data fingerprint", "task version: 1 | 2"):
        assert part in said
    text = compare_text("knn", [Metric("top1")], [[record()], [other]])
    assert text.index("conditions differ") < text.index("| metric |")
    assert "no test" in text  # other data: the images do not pair
    assert not describe_differences([[record()], [record("b")]])


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


def test_the_command_runs_what_is_missing_and_pairs_objects(tmp_path, capsys):
    data = make_videos(tmp_path / "videos", sequences=2, frames=4, size=(120, 208))
    card = Card("vit", 16, 24, 1, 2, pos="learned 4x4", mean=(0.5,) * 3, std=(0.5,) * 3)
    files = []
    for seed in range(2):
        torch.manual_seed(seed)
        files.append(tmp_path / f"net{seed}.safetensors")
        own.write(files[-1], Encoder(card).vit.state_dict(), card, {})
    options = Options(data=[str(data)], out=tmp_path / "out", device="cpu", overrides=["size=128"])
    for _ in range(2):  # the second time nothing is run
        assert compare_command(files, ["davis"], options) == 0
        text = capsys.readouterr().out
        assert "The conditions are the same." in text
        assert "paired bootstrap over" in text
        assert text.count("| (J&F)_m |") == 1
    assert len(list((tmp_path / "out/records/davis").glob("*.json"))) == 2
    with pytest.raises(UserError, match="two checkpoints"):
        compare_command(files[:1], ["davis"], options)
