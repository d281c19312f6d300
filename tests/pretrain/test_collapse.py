"""What the log shows of a collapse, and when it is said."""

import math

import pytest
import torch

from selfpatch_bench.benchmarks.commands.pretrain import pretrain_command
from selfpatch_bench.pretrain.config import load_recipe
from selfpatch_bench.pretrain.data.images import open_source
from selfpatch_bench.pretrain.data.loader import batches
from selfpatch_bench.pretrain.distributed import Ranks
from selfpatch_bench.pretrain.model.backbone import tokens
from selfpatch_bench.pretrain.monitor import collapse
from selfpatch_bench.pretrain.monitor.collapse import Collapse, Signs, effective_rank
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


def said(signs: Signs, count: int, start: int = 201, **changed) -> list[str]:
    """What `count` lines with these numbers make it say."""
    values = HEALTHY | {k.replace("__", "."): v for k, v in changed.items()}
    return [text for i in range(count) for text in signs.look({"step": start + i} | values)]


KINDS = {
    "one: the teacher gives all weight to a single prototype": {"one__entropy": 0.005 * TOP},
    "one: collapse: the teacher's output is uniform": {"one__entropy": 0.999 * TOP, "one__kl": 1e-4},
    "one: the teacher's output is nearly uniform": {"one__entropy": 0.999 * TOP},
    "one: the norm of the centre keeps growing": {"one__centre_norm": 7.0},
    "image vectors of different images become alike: the effective rank of a batch is 4": {"rank": 4.0},
    "keys: the keys of different images are nearly the same": {"keys__alike": 0.995},
}


@pytest.mark.parametrize("words", KINDS)
def test_said_once_until_it_is_over(words):
    """Not by two lines, by three; not again while it lasts or hovers; again after it was over."""
    signs, bad = Signs({"one": 1000}, 10), KINDS[words]
    assert not said(signs, 20)
    assert not said(signs, 2, **bad)
    assert not said(signs, 3)
    assert not said(signs, 2, **bad)
    (text,) = said(signs, 1, **bad)
    assert text.startswith(words)
    assert not said(signs, 30, **bad)
    assert not said(signs, 2)
    assert not said(signs, 30, **bad)
    assert not said(signs, 12)
    assert len(said(signs, 30, **bad)) == 1


def test_healthy_and_early_lines_say_nothing():
    """A network begins uniform: nothing is said of the first epoch, but of no fewer steps than 100, nor more than 2000.
    Numbers that are absent or not finite are no sign."""
    bad = KINDS["one: collapse: the teacher's output is uniform"]
    for epoch, grace in ((10, 100), (500, 500), (10**6, 2000)):
        assert not said(Signs({"one": 1000}, epoch), grace, start=1, **bad)
        assert len(said(Signs({"one": 1000}, epoch), grace + 3, start=1, **bad)) == 1
    signs = Signs({"one": 1000, "other": 5}, 10)
    assert not said(signs, 50)
    assert not said(signs, 50, one__entropy=None, one__kl=None, rank=None)
    assert not signs.look({"step": 999})
    falling = [said(signs, 10, rank=30 - 0.5 * i, one__entropy=TOP * (0.99 - 0.02 * i)) for i in range(40)]
    assert falling == [[]] * 40


def test_resumed_run_says_what_the_whole_one_says(data):
    """After any line the rest of the log gives the same, also where a sign is half complete."""
    trainer = Trainer(load_recipe("dino", DINO), 4, Ranks("cpu"))
    bad = [{"rank": 1.0}, {"dino.entropy": 3.46, "dino.kl": 0.0}, {"dino.centre_norm": 50.0}]
    healthy = {"loss": 1.0, "dino.entropy": 2.0, "dino.kl": 1.0, "dino.centre_norm": 1.0, "rank": 3.0}
    log = [healthy | bad[i // 7 % 3] if i // 7 % 2 else healthy for i in range(90)]
    log = [x | {"step": 101 + i} for i, x in enumerate(log)]
    whole = Collapse(trainer, 4)
    expected = [whole.look(x) for x in log]
    assert sum(map(len, expected)) > 4
    for at in range(0, 90, 7):
        other = Collapse(trainer, 4)
        other.replay([*log[:at], {"step": 100 + at, "watch.epochs": 1}])
        assert [other.look(x) for x in log[at:]] == expected[at:]


OTHER = [x for x in MOBY if not x.startswith(("network.", "views."))]
CASES = {"selfpatch": SELFPATCH, "dino": DINO, "ibot": IBOT, "pwself": PWSELF, "moby": (*OTHER, *SWIN)}


@pytest.mark.parametrize("recipe", CASES)
@pytest.mark.parametrize(("parts", "rows"), [(1, 64), (2, 3)])
def test_numbers_are_the_teachers(data, monkeypatch, recipe, parts, rows):
    """The rank is that of the teacher's image vectors of the first images' first views, computed here once more; the
    centre's norm that of the objective's own. With a learning rate of 0 a step leaves the networks as they were
    (float64: rounding only)."""
    monkeypatch.setattr(collapse, "ROWS", rows)
    still = ("schedule.lr=0", "schedule.min_lr=0", "schedule.warmup_epochs=0", "schedule.warmup_lr=0")
    still += ("loop.precision=float64", f"loop.accumulation={parts}")
    made = Trainer(load_recipe(recipe, [*CASES[recipe], *still]), 4, Ranks("cpu"))
    watched = Collapse(made, 4)
    feed = batches(open_source(data), made.cfg.views, seed=0, batch=4, patch=made.learner.patch)
    groups = next(feed).groups
    before = {k: v.clone() for k, v in made.learner.objectives.state_dict().items()}
    watched.arm(True)
    made.advance(groups)
    found = watched.numbers()
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
    watched.arm(False)
    made.advance(groups)
    assert not watched.kept  # nothing is held by steps that are not shown


def test_a_run_that_collapses(data, tmp_path, monkeypatch, capsys):
    """A teacher's temperature of 1000 makes its output uniform: said in the log and on the screen, once."""
    monkeypatch.setattr(collapse, "GRACE", (0, 0))
    given = [*DINO, "loop.steps=8", "schedule.warmup_epochs=0"]
    hot = ["objectives.dino.teacher_temperature=1000", "objectives.dino.teacher_temperature_start=1000"]
    assert pretrain_command("dino", data, tmp_path / "run", overrides=[*given, *hot]) == 0
    (warned,) = [x for x in lines(tmp_path / "run") if "warning" in x]
    assert warned["step"] == collapse.PATIENCE
    assert warned["warning"].startswith("dino: ")
    assert "uniform" in warned["warning"]
    assert capsys.readouterr().err.count("step 3: warning: dino: ") == 1
