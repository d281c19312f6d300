"""What the log shows of a collapse, and when it is said.

RUNS are the logs of six real runs that did not collapse, none of which may be warned of: on drawn scenes at 112 pixels
with half of ViT-Ti/16 the recipe selfpatch with the demo's values (demo), with twice its learning rate (fast), with
twice its steps (long), without the patch term (baseline), with the recipe's centre and bottleneck, a frozen last layer
and a teacher of EMA 0.95, whose rank halves and whose output nears the uniform (official); and moby_small with 96
channels and 4 blocks on 2,000 photographs of 64 pixels (moby).
"""

import math

import pytest
import torch

from selfpatch_bench.benchmarks.commands.pretrain import pretrain_command
from selfpatch_bench.pretrain.config import load_recipe
from selfpatch_bench.pretrain.data.images import open_source
from selfpatch_bench.pretrain.data.loader import batches
from selfpatch_bench.pretrain.distributed import Ranks
from selfpatch_bench.pretrain.model import learner as learners
from selfpatch_bench.pretrain.model.backbone import tokens
from selfpatch_bench.pretrain.monitor import collapse
from selfpatch_bench.pretrain.monitor.collapse import Signs, effective_rank
from selfpatch_bench.pretrain.step import Learner, Trainer
from training import DINO, IBOT, MOBY, PWSELF, SELFPATCH, SWIN, lines, pictures
from training import one_thread as one_thread

TOP = math.log(1000)
HEALTHY = {"one.entropy": 0.5 * TOP, "one.kl": 0.1 * TOP, "one.centre_norm": 1.0, "rank": 30.0, "keys.alike": 0.5}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return pictures(tmp_path_factory.mktemp("pictures"))


def test_effective_rank():
    """Known spectra: orthogonal vectors, copies of one (with rounding), two lengths; scale does not matter."""
    unit = torch.linalg.qr(torch.randn(12, 12, dtype=torch.float64))[0]
    assert effective_rank(7 * unit[:5]) == pytest.approx(5, rel=1e-12)
    same = unit[:1].float().repeat(64, 1)
    assert effective_rank(same + 1e-7 * torch.randn(64, 12)) < 1.01
    shares = torch.tensor([0.75, 0.25])
    pair = unit[:2] * torch.tensor([[3.0], [1.0]], dtype=torch.float64)
    assert effective_rank(pair) == pytest.approx(float((-shares * shares.log()).sum().exp()), rel=1e-6)
    assert effective_rank(torch.zeros(3, 4)) == 1
    assert math.isnan(effective_rank(torch.full((3, 4), math.nan)))


# Rank, and entropy / log K of dino and of selfpatch (alike of moby), in the lines of steps 1, 10, 20, ...
RUNS = {
    "demo": (
        (9.43, 9.14, 7.75, 8.17, 7.67, 7.34, 7.05, 6.80, 7.02),
        (0.502, 0.652, 0.762, 0.772, 0.801, 0.818, 0.853, 0.857, 0.841),
        (0.445, 0.639, 0.665, 0.705, 0.698, 0.723, 0.738, 0.762, 0.736),
    ),
    "fast": (
        (9.43, 9.02, 7.03, 7.13, 6.74, 6.26, 5.92, 5.88, 5.89),
        (0.502, 0.680, 0.845, 0.815, 0.841, 0.874, 0.893, 0.902, 0.888),
        (0.445, 0.647, 0.704, 0.736, 0.730, 0.738, 0.752, 0.785, 0.753),
    ),
    "long": (
        (9.43, 9.14, 7.70, 8.01, 7.39, 6.82, 6.26, 6.09, 5.82, 5.51, 6.02, 5.00, 5.19, 5.14, 5.68, 5.05, 5.32),
        (0.50, 0.65, 0.77, 0.78, 0.80, 0.82, 0.87, 0.87, 0.87, 0.87, 0.89, 0.90, 0.91, 0.90, 0.91, 0.88, 0.91),
        (0.45, 0.64, 0.67, 0.71, 0.71, 0.72, 0.74, 0.77, 0.75, 0.73, 0.72, 0.73, 0.74, 0.73, 0.73, 0.72, 0.72),
    ),
    "baseline": (
        (9.43, 9.15, 7.75, 8.15, 7.64, 7.27, 6.94, 6.74, 6.95),
        (0.502, 0.653, 0.766, 0.775, 0.801, 0.822, 0.856, 0.856, 0.841),
    ),
    "official": (
        (9.43, 8.33, 5.26, 5.04, 4.75, 4.34, 4.13, 4.01, 4.06),
        (None, 0.877, 0.938, 0.963, 0.956, 0.971, 0.981, 0.990, 0.990),
        (None, 0.863, 0.908, 0.924, 0.939, 0.964, 0.971, 0.980, 0.975),
    ),
    "moby": (
        (10.73, 13.48, 12.45, 14.06, 12.62, 11.90, 11.97, 11.48, 12.37, 13.08, 12.77, 11.06, 11.60),
        (0.58, 0.57, 0.58, 0.57, 0.57, 0.56, 0.55, 0.56, 0.55, 0.55, 0.55, 0.56, 0.55),
    ),
}  # fmt: skip
KEYS = {"dino": math.log(1024), "selfpatch": math.log(512)}


@pytest.mark.parametrize("name", RUNS)
def test_healthy_runs_are_not_warned_of(name):
    ranks, *others = RUNS[name]
    tops = {} if name == "moby" else dict(list(KEYS.items())[: len(others)])
    signs = Signs({key: round(math.exp(top)) for key, top in tops.items()}, 10 * (len(ranks) - 1))
    for i, (rank, *values) in enumerate(zip(ranks, *others, strict=True)):
        line = {"step": 10 * i or 1, "loss": 1.0, "rank": rank}
        shares = zip(tops.items(), values, strict=False)
        line |= {f"{k}.entropy": share and share * top for (k, top), share in shares}
        line |= {"moby.alike": values[0]} if name == "moby" else {}
        assert signs.look(line) == []


STEPS = 200  # of a run


def warned(signs: Signs, count: int, start: int = 101, **changed) -> list[str]:
    """The warnings of `count` lines with these numbers."""
    values = HEALTHY | {k.replace("__", "."): v for k, v in changed.items()}
    return [text for i in range(count) for text in signs.look({"step": start + i, "loss": 1.0} | values)]


BAD = {
    "one: the teacher gives all weight to a single prototype": {"one__entropy": 0.005 * TOP},
    "one: the teacher's output is nearly uniform": {"one__entropy": 0.999 * TOP},
    "image vectors of different images become alike: the effective rank of a batch is 4": {"rank": 4.0},
    "image vectors of different images become alike: the effective rank of a batch is 1.05": {"rank": 1.05},
    "keys: the keys of different images are nearly the same": {"keys__alike": 0.995},
}


@pytest.mark.parametrize("words", BAD)
def test_warned_once(words):
    """Not by two lines, by three in a row; not again, whether it lasts, hovers, or comes back."""
    signs, bad = Signs({"one": 1000}, STEPS), BAD[words]
    assert not warned(signs, 20)
    assert not warned(signs, 2, **bad)
    assert not warned(signs, 1)
    assert not warned(signs, 2, **bad)
    (text,) = warned(signs, 1, **bad)
    assert text.startswith(words)
    assert not warned(signs, 30, **bad)
    assert not warned(signs, 10)
    assert not warned(signs, 30, **bad)


@pytest.mark.parametrize("words", BAD)
def test_the_first_half_counts_and_is_not_spoken_of(words):
    """A network begins uniform: nothing is said before half of the run; what the lines before it show is said then."""
    signs, bad = Signs({"one": 1000}, STEPS), BAD[words]
    assert not warned(signs, 1, start=1)
    assert not warned(signs, 98, start=2, **bad)
    assert len(warned(signs, 1, start=100, **bad)) == 1
    signs = Signs({"one": 1000}, STEPS)
    assert not warned(signs, 97, start=1)
    assert not warned(signs, 2, start=98, **bad)
    assert len(warned(signs, 1, start=100, **bad)) == 1


@pytest.mark.parametrize("every", [1, 10, 50])
def test_a_collapse_at_the_very_start(every):
    """Between the first line and the second: the first one says what there was, in a run of five lines, too."""
    signs, before = Signs({"one": 1000}, STEPS), HEALTHY | {"loss": 1.0, "rank": 9.0, "one.centre_norm": 0.1}
    assert not signs.look(before | {"step": 1})
    after = before | {"rank": 1.3, "one.centre_norm": 2.5}
    said = {step: texts for step in range(every, STEPS + 1, every) if (texts := signs.look(after | {"step": step}))}
    ((step, (text,)),) = said.items()
    assert step == max(STEPS // 2, every * collapse.PATIENCE)
    assert "is 1.3, it was 9: " in text
    assert "its norm: one's from 0.1 to 2.5" in text


COLD, SLOW = "teacher temperature", "slower teacher (schedule.ema nearer to 1) or a lower schedule.lr"


@pytest.mark.parametrize(
    ("rank", "changed", "advice"),
    [
        (30.0, {"one__entropy": 0.999 * TOP}, f"a lower {COLD}"),
        (30.0, {"one__entropy": 0.001 * TOP}, f"a higher {COLD}"),
        (None, {"one__entropy": 0.999 * TOP}, f"a lower {COLD}"),
        (1.3, {"one__entropy": 0.999 * TOP}, SLOW),
        (1.3, {"one__entropy": 0.001 * TOP}, SLOW),
        (1.3, {}, SLOW),
        (30.0, {"keys__alike": 0.999}, SLOW),
    ],
)
def test_the_advice_fits_the_sign(rank, changed, advice):
    """A temperature is spoken of where the network tells images apart, and a slower teacher where it does not."""
    signs = Signs({"one": 1000}, STEPS)
    assert not warned(signs, 3)
    texts = warned(signs, 3, rank=rank, **changed)
    assert texts
    for text in texts:
        assert advice in text
        assert (COLD in text) != (SLOW in text)
        assert ("centre_momentum" in text) == (SLOW in text)


def test_no_centre_is_spoken_of_where_there_is_none():
    """MoBY's advice."""
    signs = Signs({}, STEPS)
    log = [{"step": i + 100, "loss": 1.0, "keys.alike": 0.999, "rank": 1.0 if i else 9.0} for i in range(9)]
    texts = [text for line in log for text in signs.look(line)]
    assert len(texts) == 2
    assert all(SLOW in text and "centre" not in text for text in texts)


def test_healthy_lines_and_missing_numbers():
    """Numbers that are absent or not finite are no sign, and a slow fall is none."""
    signs = Signs({"one": 1000, "other": 5}, STEPS)
    assert not warned(signs, 50)
    assert not warned(signs, 50, one__entropy=None, one__kl=None, rank=None, keys__alike=None)
    assert not signs.look({"step": 199, "watch.epochs": 1})
    falling = [warned(signs, 10, rank=30 - 0.4 * i, one__entropy=TOP * (0.99 - 0.02 * i)) for i in range(40)]
    assert falling == [[]] * 40


def test_resumed_run_warns_as_the_whole_one():
    """After any line the rest of the log gives the same, also where a sign is half complete; an evaluation's line
    counts for nothing."""
    healthy = {"loss": 1.0, "one.entropy": 0.5 * TOP, "rank": 3.0}
    bad = [{"rank": 1.0}, {"one.entropy": 0.999 * TOP}, {"one.entropy": 0.0}]
    log = [healthy | bad[i // 7 % 3] if i // 7 % 2 else healthy for i in range(STEPS)]
    log = [line | {"step": 1 + i} for i, line in enumerate(log)]
    log.insert(150, {"step": 150, "watch.epochs": 1})
    whole = Signs({"one": 1000}, STEPS)
    expected = [whole.look(line) for line in log]
    assert sum(map(len, expected)) == 3
    for at in range(0, STEPS, 9):
        resumed = Signs({"one": 1000}, STEPS)
        for line in log[:at]:
            resumed.look(line)
        assert [resumed.look(line) for line in log[at:]] == expected[at:]


OTHER = [x for x in MOBY if not x.startswith(("network.", "views."))]
CASES = {"selfpatch": SELFPATCH, "dino": DINO, "ibot": IBOT, "pwself": PWSELF, "moby": (*OTHER, *SWIN)}


@pytest.mark.parametrize("recipe", CASES)
@pytest.mark.parametrize(("parts", "rows"), [(1, 64), (2, 3)])
def test_numbers_are_the_teachers(data, monkeypatch, recipe, parts, rows):
    """The rank is that of the teacher's image vectors of the first images' first views, computed here once more; the
    centre's norm that of the objective's own. With a learning rate of 0 a step leaves the networks as they were
    (float64: rounding only)."""
    monkeypatch.setattr(learners, "ROWS", rows)
    still = ("schedule.lr=0", "schedule.min_lr=0", "schedule.warmup_epochs=0", "schedule.warmup_lr=0")
    still += ("loop.precision=float64", f"loop.accumulation={parts}")
    made = Trainer(load_recipe(recipe, [*CASES[recipe], *still]), 4, Ranks("cpu"))
    feed = batches(open_source(data), made.cfg.views, seed=0, batch=4, patch=made.learner.patch)
    groups = next(feed).groups
    before = {k: v.clone() for k, v in made.learner.objectives.state_dict().items()}
    found = collapse.numbers(made.learner, made.advance(groups).images)
    teacher = made.learner.teacher
    count = min(rows, 4)
    first = Learner.normalised(made.learner, groups[0]).x[:1, :count]
    expected = teacher.image(tokens(teacher.backbone, first.flatten(0, 1), None, made.cfg.network.positions))
    assert found["rank"] == pytest.approx(effective_rank(expected), rel=1e-9)
    assert 1 < found["rank"] <= count
    centred = {n: o for n, o in made.learner.objectives.items() if hasattr(o, "centre")}
    assert found.keys() == {"rank"} | {f"{n}.centre_norm" for n in centred}
    for name, objective in centred.items():
        mean = sum(float(row.norm()) for row in objective.centre) / len(objective.centre)
        assert float(found[f"{name}.centre_norm"]) == pytest.approx(mean, rel=1e-6)
        assert not torch.equal(objective.centre, before[f"{name}.centre"])


def test_a_run_that_collapses(data, tmp_path, capsys):
    """A teacher's temperature of 1000 makes its output uniform: said in the log and on the screen, once, by the third
    line; a run that goes on from there says what the whole one says. The first step has a line, whatever log.every is;
    log and progress have KL, entropy / log K and rank beside the loss."""
    given = [*DINO, "loop.steps=8", "schedule.warmup_epochs=0", "checkpoint.every_steps=1", "log.every=4"]
    hot = ["objectives.dino.teacher_temperature=1000", "objectives.dino.teacher_temperature_start=1000"]
    run = tmp_path / "run"
    assert pretrain_command("dino", data, run, overrides=[*given, *hot]) == 0
    whole = lines(run)
    assert [x["step"] for x in whole] == [1, 4, 8]
    assert [x["step"] for x in whole if "warning" in x] == [8]
    assert whole[-1]["warning"].startswith("dino: the teacher's output is nearly uniform")
    assert [x["dino.entropy_share"] for x in whole] == pytest.approx([x["dino.entropy"] / math.log(32) for x in whole])
    said, last = capsys.readouterr().err, whole[-1]
    assert said.count("step 8: warning: dino: ") == 1
    assert f"loss {last['loss']:.4f}  dino: KL {last['dino.kl']:.3g} H/lnK 1.000  rank {last['rank']:.3g}  " in said
    (run / "checkpoints/step-00000008.pt").unlink()
    assert pretrain_command(None, resume=run) == 0
    assert lines(run) == whole
