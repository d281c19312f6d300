"""What the demo says of its numbers."""

import pytest

from selfpatch_bench.benchmarks.commands import demo
from selfpatch_bench.benchmarks.results.record import DataSet, Model, Record

MADE = ("models/colour", "models/random", "selfpatch/step-00000080", "baseline/step-00000080")


def record(name: str, of: list[float]) -> Record:
    """A record of davis with one object in each sequence."""
    sequences = {f"s{i}": {"1": {k: {"mean": value / 100} for k in "JF"}} for i, value in enumerate(of)}
    metrics = {"JF_m": sum(of) / len(of)}
    return Record(
        name, Model(name, name), "davis", data=DataSet(fingerprint="x"), metrics=metrics, parts={"sequences": sequences}
    )


@pytest.mark.parametrize(
    ("gains", "shown"),
    [([3, 2, 4, 3, 5, 2, 3, 4], True), ([3, -2, 4, -3, 1, -2, 3, 1], False), ([3, 2, 4], False)],
)
@pytest.mark.parametrize("better", [True, False])
def test_an_order_is_suggested_only_where_one_is_shown(gains, shown, better):
    """Over eight sequences that all say the same, but not over eight that contradict one another, nor over three."""
    base = [60.0 + i for i in range(len(gains))]
    other = [b + g for b, g in zip(base, gains, strict=True)]
    ours, theirs = (other, base) if better else (base, other)
    found = {name: record(name, base) for name in MADE[:2]} | {
        MADE[2]: record(MADE[2], ours),
        MADE[3]: record(MADE[3], theirs),
    }
    text = demo.differences(found)
    rows = [line for line in text.splitlines() if line.startswith("| ") and " - " in line]
    assert [row.split(" | ")[0] for row in rows] == [
        "| models/colour - models/random",
        *(f"| {name} - models/random" for name in (MADE[3], MADE[2])),
        f"| {MADE[2]} - {MADE[3]}",
    ]
    gap = (1 if better else -1) * sum(gains) / len(gains)
    assert f"| {gap:+.1f} |" in rows[-1]
    assert ("95 %" in rows[-1]) == (len(gains) >= 6)
    said = f"{MADE[2]} and {MADE[3]}: no difference is shown, in either direction"
    assert (said in text) != shown
