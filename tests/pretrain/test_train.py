"""One optimiser step and the loop around it, on networks that take a moment."""

import copy
import math
import os
import re
import sys
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block

from selfpatch_bench.benchmarks.commands.pretrain import pretrain_command
from selfpatch_bench.pretrain import optim, train
from selfpatch_bench.pretrain.checkpoint import Run
from selfpatch_bench.pretrain.common.errors import UserError
from selfpatch_bench.pretrain.config import load_recipe
from selfpatch_bench.pretrain.data.images import open_source
from selfpatch_bench.pretrain.data.loader import batches
from selfpatch_bench.pretrain.distributed import Ranks
from selfpatch_bench.pretrain.monitor.collapse import Signs
from selfpatch_bench.pretrain.monitor.log import Log
from selfpatch_bench.pretrain.step import NotFinite, Trainer
from training import DINO, METHODS, SELFPATCH, difference, final, lines, pictures, same, tensors
from training import one_thread as one_thread

PLAIN = ("loop.precision=float64", "network.drop_path=0", "schedule.warmup_epochs=0")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def feed(data):
    """The groups of the first epoch's four batches; another recipe's views are the same."""
    cfg = load_recipe("selfpatch", SELFPATCH)
    return [b.groups for b in batches(open_source(data), cfg.views, seed=0, batch=4)]


def trainer(*options, recipe="selfpatch") -> Trainer:
    return Trainer(load_recipe(recipe, [*(SELFPATCH if recipe == "selfpatch" else DINO), *options]), 4, Ranks("cpu"))


def advanced(feed, *options, steps=3, **which) -> Trainer:
    made = trainer(*options, **which)
    for groups in feed[:steps]:
        made.advance(groups)
    return made


@pytest.mark.parametrize("recipe", ["selfpatch", "dino"])
def test_accumulation(feed, recipe):
    """Losses are means over images: two or four micro-steps give the same step (float64, up to the order of sums)."""
    whole = advanced(feed, *PLAIN, recipe=recipe).state()
    for parts in (2, 4):
        parted = advanced(feed, *PLAIN, f"loop.accumulation={parts}", recipe=recipe)
        assert difference(parted.state(), whole) < 1e-10


def test_activation_checkpointing(feed, monkeypatch):
    """Blocks are computed once more in the backward pass, with the same stochastic depth: equal to the last bit."""
    calls = []
    forward = Block.forward
    monkeypatch.setattr(Block, "forward", lambda self, *args: calls.append(self) or forward(self, *args))
    counts, states = [], []
    for wanted in (False, True):
        made = advanced(
            feed, "network.drop_path=0.5", "schedule.warmup_epochs=0", f"loop.checkpointing={wanted}", steps=2
        )
        states.append(made.state())
        counts.append(sum(b is made.learner.student.backbone.blocks[0] for b in calls))
    assert same(*states)
    assert counts[1] == 2 * counts[0] > 0


def test_weight_of_a_checkpoint(feed):
    """What a run says of it is what its tensors take."""
    made = advanced(feed, *PLAIN, "objectives.dino.outputs=2000", "optim.freeze_epochs=0", steps=1)
    size = sum(t.nbytes for t in tensors(made.state()).values() if t.ndim)  # Adam counts its steps in scalars
    said = train.weight(made)
    assert said.startswith(f"a checkpoint takes {size / 1e6:.3g} MB, ")
    assert "% of it for heads (c_head most of all)" in said


def test_deterministic_is_for_the_run_only(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    for asked in (False, True):
        with train.reproducible(asked):
            assert torch.are_deterministic_algorithms_enabled() == asked
            assert ("CUBLAS_WORKSPACE_CONFIG" in os.environ) == asked
    assert not torch.are_deterministic_algorithms_enabled()


def test_step_by_hand(feed):
    """A step of our own from the same gradients: clip each tensor to 3, freeze last layers, AdamW with decay for
    matrices only, EMA, in that order; the second epoch's step then moves the last layers too."""
    made = trainer(*PLAIN, "loop.epochs=2")
    lr, decay, ema = (getattr(made.schedules, k) for k in ("lr", "weight_decay", "ema"))
    student = {k: v.detach().clone() for k, v in made.learner.student.named_parameters()}
    teacher = {k: v.detach().clone() for k, v in made.learner.teacher.named_parameters()}
    moments, clipped = {}, 0
    for t, groups in enumerate([*feed, feed[0]]):
        before = made.learner.state_dict()
        before = {k: v.clone() for k, v in before.items()}
        grads = gradients(made, groups, t)
        assert made.learner.state_dict().keys() == before.keys()
        made.advance(groups)
        for name, g in grads.items():
            clipped += float(g.norm()) > 3
            g = g * min(1.0, 3 / (float(g.norm()) + 1e-6))
            if "last_layer" in name and t < 4:
                continue
            m, v, n = moments.get(name, (0, 0, 0))
            m, v, n = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g, n + 1
            moments[name] = m, v, n
            p = student[name] * (1 - lr[t] * (decay[t] if g.ndim > 1 and not name.endswith(".bias") else 0))
            student[name] = p - lr[t] * (m / (1 - 0.9**n)) / ((v / (1 - 0.999**n)).sqrt() + 1e-8)
        for name in teacher:
            teacher[name] = ema[t] * teacher[name] + (1 - ema[t]) * student[name]
        for mine, theirs in ((student, made.learner.student), (teacher, made.learner.teacher)):
            for name, value in theirs.named_parameters():
                assert torch.allclose(value, mine[name], rtol=1e-10, atol=1e-12), (t, name)
    assert clipped > 10  # clipping was at work
    assert made.epoch == 1


def gradients(made: Trainer, groups, step: int) -> dict[str, torch.Tensor]:
    """Of the loss at the current weights, from a second forward that leaves no trace."""
    from selfpatch_bench.pretrain.objectives import Step

    total, _, _ = made.learner(groups, Step(step, step // 4))
    named = [(n, p) for n, p in made.learner.student.named_parameters() if p.requires_grad]
    found = torch.autograd.grad(total, [p for _, p in named], allow_unused=True)
    return {n: g for (n, _), g in zip(named, found, strict=True) if g is not None}


OWN = """
from dataclasses import dataclass
import torch
from torch import nn
from selfpatch_bench.pretrain.objectives import HeadSpec, Spec

@dataclass
class Config:
    pass

class Objective(nn.Module):
    @staticmethod
    def spec(cfg, net):
        return Spec({"near": HeadSpec(lambda dim: nn.Linear(dim, 6))})

    def __init__(self, cfg, net):
        super().__init__()
        self.predictor = nn.Linear(6, 6)

    def forward(self, student, teacher, groups, step):
        apart = self.predictor(student[0]["near"]) - teacher[0]["near"].flip(0)
        return {"apart": 1e6 * apart.square().mean()}, {}

    def update(self, stats):
        return {}
"""


def test_an_objectives_own_parameters(feed, tmp_path, monkeypatch):
    """A predictor of the objective's is clipped and moved by AdamW with decay of matrices only, as the student is; it
    is saved, and a resumed run is equal to the last bit."""
    (tmp_path / "objectives").mkdir()
    (tmp_path / "objectives" / "apart.py").write_text(OWN)
    monkeypatch.setenv("SELFPATCH_PLUGINS", str(tmp_path))
    given = "objectives=[{name: apart}]"
    made = trainer(given, *PLAIN, recipe="dino")
    predictor = made.learner.objectives["apart"].predictor
    before = {k: v.detach().clone() for k, v in predictor.named_parameters()}
    made.advance(feed[0])
    lr, decay = made.schedules.lr[0], made.schedules.weight_decay[0]
    for name, p in predictor.named_parameters():
        assert float(p.grad.norm()) == pytest.approx(3, rel=1e-6)  # clipped from thousands
        moved = before[name] * (1 - lr * (decay if name == "weight" else 0)) - lr * p.grad / (p.grad.abs() + 1e-8)
        assert torch.allclose(p, moved, rtol=1e-10, atol=1e-12)
    assert any("objectives.apart.predictor.weight" in g["names"] for g in made.state()["optimizer"]["param_groups"])
    resumed = trainer(given, *PLAIN, recipe="dino")
    resumed.load(copy.deepcopy(made.state()))
    for each in (made, resumed):
        each.advance(feed[1])
    assert same(resumed.state(), made.state())


def test_unused_parameters(feed):
    """Without the image objective nothing trains the class attention: such parameters stay as they are."""
    made = trainer("objectives.dino.weight=0", *PLAIN)
    before = made.learner.student.readout.cls_token.detach().clone()
    made.advance(feed[0])
    assert torch.equal(made.learner.student.readout.cls_token, before)


@pytest.mark.parametrize(("precision", "bound"), [("bf16", 0.1), ("fp16", 0.02)])
def test_low_precision(feed, precision, bound):
    """Losses of three steps stay near those of float32 (8 and 11 bits of mantissa); weights stay float32."""
    exact, low = trainer("loop.precision=float32"), trainer(f"loop.precision={precision}")
    low.scaler = torch.amp.GradScaler(
        "cpu", init_scale=64.0, enabled=low.scaler.is_enabled()
    )  # the usual one overflows
    for groups in feed[:3]:
        a, b = exact.advance(groups), low.advance(groups)
        assert float(b.numbers["loss"]) == pytest.approx(float(a.numbers["loss"]), rel=bound)
        assert b.numbers["loss"] != a.numbers["loss"]
    assert {p.dtype for p in low.learner.parameters()} == {torch.float32}
    assert low.scaler.is_enabled() == (precision == "fp16")


def test_fp16_leaves_out_a_step_that_overflows(feed):
    """A scale that makes gradients infinite: weights stay, the scale is halved, the run goes on."""
    made = trainer("loop.precision=fp16", "schedule.warmup_epochs=0")
    made.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    before = {k: v.clone() for k, v in made.learner.student.state_dict().items()}
    made.advance(feed[0])
    assert all(torch.equal(v, before[k]) for k, v in made.learner.student.state_dict().items())
    assert made.scaler.get_scale() == 2.0**39
    assert made.step == 1


def test_not_finite_changes_nothing(feed):
    made = trainer(*PLAIN)
    made.advance(feed[0])
    with torch.no_grad():
        made.learner.student.backbone.blocks[0].mlp.fc1.bias[0] = math.inf
    before = {k: v.clone() for k, v in tensors(made.state()).items()}
    with pytest.raises(NotFinite, match="loss"):
        made.advance(feed[1])
    after = tensors(made.state())
    assert all(torch.equal(after[k], v) for k, v in before.items())
    assert made.step == 1


@pytest.mark.parametrize(
    ("recipe", "precision", "what"),
    [
        ("selfpatch", "float32", "gradients"),
        ("pwself", "float64", "loss"),
        ("moby", "float32", "loss"),
        ("dino", "fp16", "loss"),
    ],
)
def test_a_step_left_out_by_the_device(feed, recipe, precision, what):
    """As on a GPU, where the host hears of a step during the next: neither has changed anything by then, to the last
    bit; the steps before are the same as with a host that waits."""
    options = [*METHODS[recipe], *PLAIN, f"loop.precision={precision}"]
    made, waits = (Trainer(load_recipe(recipe, options), 4, Ranks("cpu")) for _ in range(2))
    made.late = True
    for each in (made, waits):
        each.scaler = torch.amp.GradScaler("cpu", init_scale=64.0, enabled=each.scaler.is_enabled())
        each.advance(feed[0], flag=2)
        each.settle()
    left, right = tensors(made.state()), tensors(waits.state())
    assert all(torch.allclose(left[k], v, rtol=1e-6, atol=1e-9) for k, v in right.items())
    assert made.flag == 2
    bias = next(p for n, p in made.named if n.endswith("blocks.0.mlp.fc1.bias"))
    if what == "loss":
        with torch.no_grad():
            bias[0] = math.inf
    else:
        hook = bias.register_hook(lambda g: g * math.nan)
    before = {k: v.clone() for k, v in tensors(made.state()).items() if not k.startswith("scaler")}
    made.advance(feed[1])
    assert made.step == 2
    for settle in (lambda: made.advance(feed[2]), made.settle):
        with pytest.raises(NotFinite, match=what):
            settle()
        after = tensors(made.state())
        assert all(torch.equal(after[k], v) for k, v in before.items())
        assert made.step == 1
        if settle != made.settle:
            made.advance(feed[1])
    if what == "gradients":
        hook.remove()
        made.advance(feed[1])
        made.settle()
        assert made.step == 2


def test_not_finite_gradients(feed):
    """A finite loss with a gradient that is not, which would spoil the weights unseen."""
    made = trainer(*PLAIN)
    made.learner.student.backbone.blocks[0].mlp.fc1.bias.register_hook(lambda g: g * math.nan)
    with pytest.raises(NotFinite, match="gradients"):
        made.advance(feed[0])


@pytest.mark.parametrize("late", [False, True])
def test_not_finite_run(data, tmp_path, monkeypatch, late):
    """The run ends with status 1 and names the images and the last good checkpoint; no state is stored from then on,
    where the host hears of it a step later too."""
    advance = Trainer.advance

    def spoil(self, micro_batches, flag=0):
        rows, self.late = list(micro_batches), late
        if self.step == 5:
            rows[-1][0].x = rows[-1][0].x.float() * math.nan
        return advance(self, iter(rows), flag)

    monkeypatch.setattr(Trainer, "advance", spoil)
    with pytest.raises(UserError) as caught:
        pretrain_command("dino", data, tmp_path / "run", overrides=[*DINO, "loop.per_gpu=2"])
    assert caught.value.status == 1
    named = (tmp_path / "run" / "not-finite-00000006.txt").read_text().split()
    cfg = load_recipe("dino", DINO)
    expected = list(batches(open_source(data), cfg.views, seed=0, batch=4, epoch=1))[1].names
    assert named == expected
    text = str(caught.value)
    assert text.startswith(f"the loss of step 6 is not finite; its images: {', '.join(expected[:3])} and 1 more, see ")
    assert f"the last good checkpoint is {tmp_path}/run/checkpoints/step-00000004.pt" in text


def test_a_warning_is_said_as_it_is(tmp_path, capsys):
    with Log(Run(tmp_path), 0, 1, Signs({}, 1)) as log:
        log.write({"step": 1, "warning": "photos/[a].jpg is [red]odd"})
    assert capsys.readouterr().err == "step 1: warning: photos/[a].jpg is [red]odd\n"


def test_log(data, tmp_path, capsys):
    """Every number that the issue asks for; those of the schedules are the schedules'; entropy and KL add up."""
    options = [*SELFPATCH, "log.every=5", "loop.steps=12"]
    assert pretrain_command("selfpatch", data, tmp_path / "run", overrides=options) == 0
    import json

    found = [json.loads(x) for x in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [x["step"] for x in found] == [1, 5, 10, 12]
    assert [x["epoch"] for x in found] == [0, 1, 2, 2]
    cfg = load_recipe("selfpatch", options)
    plan = optim.build_schedules(cfg.schedule, 4, 12, 4)
    for line in found:
        for key in ("lr", "weight_decay", "ema"):
            assert line[key] == getattr(plan, key)[line["step"] - 1]
        assert line["loss"] == pytest.approx(line["dino.image"] + 0.1 * line["selfpatch.patch"], rel=1e-6)
        for part, name in (("image", "dino"), ("patch", "selfpatch")):
            assert line[f"{name}.entropy"] + line[f"{name}.kl"] == pytest.approx(line[f"{name}.{part}"], rel=1e-5)
            assert 0 < line[f"{name}.entropy"] <= math.log(32) + 1e-6
        assert line["images_per_s"] > 0
        assert 0 <= line["data_wait"] <= 1
        assert line["memory_gb"] > 0.05
        assert line["mfu"] is None  # of a CPU no peak is known
    said = capsys.readouterr().err
    assert "12 steps, 4 an epoch of 16 images" in said
    assert "loss" in said


def test_same_seed_same_run(data, tmp_path):
    """Data workers and log change nothing; another seed changes all."""
    runs = {"a": [], "b": ["data.workers=2", "log.every=3"], "c": ["seed=1"]}
    for name, more in runs.items():
        assert pretrain_command("dino", data, tmp_path / name, overrides=[*DINO, "loop.steps=5", *more]) == 0
    a, b, c = (final(tmp_path / name) for name in runs)
    assert same(a, b)
    assert not same(a, c)
    assert [lines(tmp_path / "a")[i] for i in (0, 2, 4)] == lines(tmp_path / "b")


@pytest.mark.parametrize("recipe", ["selfpatch", "dino"])
def test_init(data, tmp_path, recipe, capsys):
    """A run that starts from a file has its backbone and readout at step 0, in student and teacher."""
    from safetensors.torch import save_file

    source = trainer("seed=3", recipe=recipe)
    prefix = {"backbone.": "", "readout.norm.": "norm."}
    weights = {}
    for key, value in source.learner.student.state_dict().items():
        for start, other in prefix.items():
            if key.startswith(start):
                weights[other + key.removeprefix(start)] = value.clone()
    path = tmp_path / "start.safetensors"
    save_file(weights, path)
    options = [
        *(SELFPATCH if recipe == "selfpatch" else DINO),
        f"init={path}",
        "loop.steps=1",
        "schedule.warmup_epochs=1",
    ]
    with pytest.raises(UserError, match="warm-up"):
        pretrain_command(recipe, data, tmp_path / "run", overrides=options)
    options[-1] = "schedule.lr=0"
    options.append("schedule.warmup_epochs=0")
    options.append("schedule.min_lr=0")
    assert pretrain_command(recipe, data, tmp_path / "run", overrides=options) == 0
    assert re.search(rf"init={path}: format \w+, {len(weights)}/{len(weights)} tensors", capsys.readouterr().err)
    state = final(tmp_path / "run")
    for side in ("student", "teacher"):
        for key, value in source.learner.student.state_dict().items():
            if key.startswith(("backbone.", "readout.norm.")):
                assert torch.equal(state[side][key], value), (side, key)
    shallow = [*options, "network.overrides={embed_dim: 24, depth: 1, num_heads: 2}"]
    with pytest.raises(UserError, match=r"another network than .*: depth 2 instead of 1"):
        pretrain_command(recipe, data, tmp_path / "no", overrides=shallow)
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["loop.batch=17"], "16 images are fewer than one batch: loop.batch=17"),
        (["loop.accumulation=3"], "must be a multiple of 3"),
        (["loop.device=tpu0"], "loop.device=tpu0: it is auto, cpu, cuda or cuda:N"),
        (["schedule.warmup_epochs=10"], "a warm-up of 40 steps does not fit a run of 12"),
        (["no.such=1"], "there is no no"),
        (["data.workers=-1"], "data.workers=-1: it must be at least 0"),
        (["schedule.lr=.nan"], "schedule.lr=nan: it must be finite"),
        (["loop.epochs=90000000"], "loop.epochs=90000000: 360000000 steps; there can be 100000000"),
    ],
)
def test_mistakes_cost_nothing(data, tmp_path, options, words):
    """They are found before the run's folder is made."""
    with pytest.raises(UserError, match=words):
        pretrain_command("dino", data, tmp_path / "run", overrides=[*DINO, *options])
    assert not (tmp_path / "run").exists()


def test_too_large_for_the_memory(data, tmp_path, monkeypatch):
    """What torch says of the memory is one line; any other failure keeps its traceback."""
    for text, error in (("DefaultCPUAllocator: can't allocate memory: 9 bytes", UserError), ("else", RuntimeError)):

        def fail(*_, text=text):
            raise RuntimeError(f"[enforce fail at alloc_cpu.cpp:127] {text}\nsecond line")

        monkeypatch.setattr(train, "Trainer", fail)
        with pytest.raises(error, match="do not fit into memory: .*9 bytes" if error is UserError else "else"):
            pretrain_command("dino", data, tmp_path / "run", overrides=DINO)
    assert not (tmp_path / "run").exists()


def test_needs(tmp_path):
    with pytest.raises(UserError, match="give --data"):
        pretrain_command("dino", overrides=DINO)
    with pytest.raises(UserError, match="give a recipe"):
        pretrain_command(None)


EVENTS = [*DINO, "loop.steps=2", "schedule.warmup_epochs=0", "log.tensorboard=true"]


def test_tensorboard_absent(data, tmp_path, monkeypatch):
    """One line that names the extra, before any folder."""
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match=r"selfpatch-bench\[track\]"):
        pretrain_command("dino", data, tmp_path / "run", overrides=EVENTS)
    assert not (tmp_path / "run").exists()


def test_tensorboard(data, tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard (extra `track`) is not installed")
    assert pretrain_command("dino", data, tmp_path / "run", overrides=EVENTS) == 0
    assert list((tmp_path / "run" / "tensorboard").glob("events*"))


def test_compile(feed, monkeypatch):
    """Compiled parts give the same results (float64: only sums in another order). What is ours is the graph, which
    aot_eager makes like every backend; kernels are torch's."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    plain = advanced(feed, *PLAIN, steps=1, recipe="dino")
    compiled = advanced(feed, *PLAIN, "loop.compile=true", "loop.checkpointing=true", steps=1, recipe="dino")
    assert difference(compiled.state(), plain.state()) < 1e-9


def test_nothing_falls_back_at_depth_12(feed, monkeypatch):
    """With the recipe's own stochastic depth, whose rate differs from block to block, torch.compile gives up no call,
    at its default limit of eight graphs a function; the student's blocks, computed again, are among them."""
    from torch._dynamo.utils import counters

    attend = []  # graphs of the student's blocks

    def backend(graph, _):
        used = {node.target for node in graph.graph.nodes}
        attend.extend([graph] * (torch.is_grad_enabled() and F.scaled_dot_product_attention in used))
        return graph

    torch._dynamo.reset()
    counters.clear()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    deep = ('network.overrides={"embed_dim": 24, "depth": 12, "num_heads": 2}', "network.drop_path=0.1")
    made = trainer(*deep, "loop.compile=true", "loop.checkpointing=true")
    monkeypatch.setattr(torch._dynamo.config, "recompile_limit", 8)
    made.advance(feed[0])
    assert attend
    assert counters["frames"]["total"] == counters["frames"]["ok"] > 0
    assert not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] < 24
