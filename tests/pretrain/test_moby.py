"""MoBY and SelfPatch on MoBY: the official steps as recorded, a plain implementation, and each rule by itself.

Killing, resuming, two processes, export and evaluation of both recipes: test_methods.py.
"""

import json
import math
import os
import re
import sys

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

import warm
from conftest import golden_cases
from plain_pretrain import (  # noqa: F401
    aggregate,
    chosen,
    gradients,
    groups,
    one_thread,
    relative,
    vit_tokens,
)
from reference_moby import PlainMoby, learning_rate, plain_head
from selfpatch_bench.pretrain import optim
from selfpatch_bench.pretrain.common.errors import UserError
from selfpatch_bench.pretrain.config import load_recipe
from selfpatch_bench.pretrain.data.group import Group
from selfpatch_bench.pretrain.distributed import Ranks
from selfpatch_bench.pretrain.model.batchnorm import BatchNorm
from selfpatch_bench.pretrain.model.heads import BatchNormMlp
from selfpatch_bench.pretrain.objectives import Step, _contrast
from selfpatch_bench.pretrain.objectives.moby_patch import one_each
from selfpatch_bench.pretrain.step import Learner, Trainer

NARROW = "network.overrides={embed_dim: 24, depth: 2, num_heads: 2}"
TINY = ["network.backbone=vit_tiny_patch8", NARROW, "network.drop_path=0", "loop.device=cpu"]
TINY += ["views.rows.0.size=32", "views.rows.1.size=32", "loop.precision=float64"]
HEADS = ["objectives.moby.hidden=20", "objectives.moby.outputs=12", "objectives.moby.queue=10"]
PATCH = ["objectives.moby_patch.hidden=20", "objectives.moby_patch.outputs=12", "objectives.moby_patch.queue=10"]
TOKEN = ["network.class_token=true", "network.readout=token"]


def small(recipe="moby", *options, noise=0.3):
    """A learner whose weights, the target's apart from the student's, are far from their initial values."""
    patch = PATCH if recipe == "moby_selfpatch" else []
    learner = Learner(load_recipe(recipe, [*TINY, *HEADS, *patch, *options])).double()
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in learner.parameters():
            p.add_(torch.randn(p.shape, generator=g, dtype=torch.float64), alpha=noise / math.sqrt(p.shape[-1]))
    return learner


# --- the official code


def our_name(key):
    """Official parameter name -> side, our name."""
    side = "teacher" if re.match(r"(encoder|projector)_k\.", key) else "student"
    key = key.replace("_k.", ".", 1)
    for theirs, ours in (("linear_hidden.1", "mlp.0"), ("linear_hidden.2", "mlp.1"), ("linear_out", "mlp.3")):
        key = key.replace(theirs, ours)
    if key.startswith("encoder."):
        return side, key.replace("encoder.", "readout." if key.startswith("encoder.norm.") else "backbone.", 1)
    return side, f"heads.{key}"


class Recorded:
    """A recorded run as a learner with its weights and queues."""

    steps_of_run, heads, momentum = 8, 3, 0.99  # as the golden folder's README says

    def __init__(self, path):
        z = self.z = np.load(path)
        self.count = len(z["images"])
        size = z["images"].shape[-1]
        width, patch = (z["before.encoder.patch_embed.proj.weight"].shape[i] for i in (0, -1))
        depth = 1 + max(int(m[1]) for k in z.files if (m := re.match(r"before\.encoder\.blocks\.(\d+)", k)))
        overrides = json.dumps({"embed_dim": width, "depth": depth, "num_heads": self.heads})
        hidden = len(z["before.projector.linear_hidden.1.bias"])
        outputs, queue = z["before.queue1"].shape
        options = [f"network.backbone=vit_small_patch{patch}", f"network.overrides={overrides}", "network.drop_path=0"]
        options += [f"views.rows.{i}.size={size}" for i in (0, 1)] + TOKEN
        options += [f"objectives.moby.{k}" for k in (f"hidden={hidden}", f"outputs={outputs}", f"queue={queue}")]
        self.learner = Learner(load_recipe("moby", options))
        state = {"student": {}, "teacher": {}}
        for key in z.files:
            if key.startswith("before.") and "queue" not in key:
                side, name = our_name(key.removeprefix("before."))
                state[side][name] = self.tensor(key)
        for side, weights in state.items():
            getattr(self.learner, side).load_state_dict(weights)
        queues = self.learner.objectives["moby"].queues
        queues.keys.copy_(torch.stack([self.tensor("before.queue1"), self.tensor("before.queue2")]))
        queues.pointer.fill_(int(z["before.queue_ptr"][0]))

    def tensor(self, key):
        return torch.from_numpy(np.asarray(self.z[key]))

    def quantities(self):
        """What the file holds of the run itself, by our names."""
        found = {}
        for key in self.z.files:
            part, _, name = key.partition(".")
            if part == "grad":
                found[f"grad {our_name(name)[1]}"] = self.tensor(key)
            elif part == "after" and not name.startswith("queue"):
                found["after {} {}".format(*our_name(name))] = self.tensor(key)
            elif part in ("loss", "grad_norm", "queue1", "queue2", "queue_ptr"):
                found[f"{part} {name}"] = self.tensor(key).squeeze()
        return found

    def repeat(self, wobble=None):
        """The same quantities from our networks, objective, optimiser and EMA. wobble: seed of a change of every weight
        by about one rounding of float32 before the first step."""
        learner, student = self.learner, dict(self.learner.student.named_parameters())
        if wobble is not None:
            g = torch.Generator().manual_seed(wobble)
            with torch.no_grad():
                for p in learner.parameters():
                    p.mul_(1 + 1e-7 * torch.randn(p.shape, generator=g))
        cfg, found = learner.cfg, {}
        momentum = optim.cosine(self.momentum, 1.0, self.steps_of_run)
        optimiser = optim.build_optimiser(student.items(), cfg.optim)
        optim.set_schedule(optimiser, 1e-3, 0.05)
        learner.ema.update(momentum[0])  # in a run of ours the target is the student then
        for t in range(self.count):
            total, _, stats = learner([Group(self.tensor("images")[t].float(), None, None)], Step(t))
            total.backward()
            if t == 0:
                found |= {f"grad {n}": p.grad.clone() for n, p in student.items() if p.grad is not None}
            found[f"loss {t}"] = total.detach()
            found[f"grad_norm {t}"] = optim.clip(student.values(), cfg.optim.clip, cfg.optim.clip_mode)[0].clone()
            optimiser.step()
            optimiser.zero_grad()
            learner.finish_step(stats, momentum[t + 1] if t + 1 < self.count else 1.0)
            queues = learner.objectives["moby"].queues
            found |= {f"queue{i + 1} {t}": queues.keys[i].clone() for i in (0, 1)}
            found[f"queue_ptr {t}"] = queues.pointer.clone()
        for side in ("student", "teacher"):
            found |= {f"after {side} {k}": v.clone() for k, v in getattr(learner, side).state_dict().items()}
        return found


@pytest.mark.parametrize("path", golden_cases("moby_step*.npz"))
def test_the_official_steps(path):
    """Losses, gradients, norms before clipping, queues and weights of the recorded steps: 1e-5 in the L2 norm of each
    tensor, plus what rounding does here.

    That is measured: ten times the change when every initial weight is changed by one rounding. A batch norm over four
    images that an untrained network hardly tells apart loses two digits of float32 (the official operations, repeated
    one by one on this machine, are 2e-5 off in the gradients), ReLUs flip, and Adam makes full steps of gradients that
    are nothing but rounding: of biases before a batch norm, and of keys.
    """
    recorded = Recorded(path).quantities()
    ours, *others = (Recorded(path).repeat(wobble) for wobble in (None, 1, 2))
    assert ours.keys() == recorded.keys()
    for name, value in recorded.items():
        if not value.is_floating_point():
            assert torch.equal(ours[name].squeeze(), value), name
            continue
        norm = value.double().norm()
        rounding = max(float((ours[name] - other[name]).double().norm() / norm) for other in others)
        assert rounding < 1e-3 or not name.startswith(("loss", "queue")), name
        assert (ours[name] - value).double().norm() / norm < 1e-5 + 10 * rounding, name


# --- a longer run against a plain implementation


@pytest.mark.parametrize(("options", "clip"), [(TOKEN, 90), (["network.readout=mean"], 38)], ids=["token", "mean"])
def test_a_run_written_out(options, clip):
    """12 steps of the trainer, over epochs and rounds of the queue, float64: losses, norms, weights, running statistics
    and queues; learning rate and momentum by their formulas. With the usual eps Adam would make steps of rounding."""
    total, batch, warmup = 12, 4, 3
    options = [
        *TINY,
        *HEADS,
        *options,
        f"loop.steps={total}",
        f"loop.batch={batch}",
        "optim.eps=0.001",
        f"optim.clip={clip}",
    ]
    cfg = load_recipe("moby", [*options, "schedule.warmup_epochs=1", f"schedule.lr_batch={batch}"])
    made = Trainer(cfg, warmup, Ranks("cpu"))
    plain = PlainMoby(made.learner, total, cfg.objectives[0].options, eps=cfg.optim.eps, clip=clip)
    for t in range(total):
        views = groups(made.learner, batch, seed=t)
        loss = plain.step(views[0].x, learning_rate(t, total, warmup))
        out = made.advance(views)
        assert out.numbers["lr"] == pytest.approx(learning_rate(t, total, warmup), rel=1e-12)
        assert out.numbers["weight_decay"] == 0.05
        assert relative(out.numbers["loss"], loss) < 1e-10
        assert relative(out.numbers["grad_norm"], plain.norms[-1]) < 1e-10
    assert min(plain.norms) < clip < max(plain.norms)  # clipping was at work, not always
    for (side, name), value in plain.weights().items():
        ours = getattr(made.learner, side).state_dict()[name]
        if value.abs().max() > 1e-7:  # else rounding
            assert relative(ours, value) < 1e-9, (side, name)
    queues = made.learner.objectives["moby"].queues
    assert relative(queues.keys, torch.stack(plain.queues)) < 1e-10
    assert int(queues.pointer) == plain.pointer == 4 * total % 10


def test_moby_is_the_published_recipe():
    cfg, on_patches = load_recipe("moby"), load_recipe("moby_selfpatch")
    rows = [(r.count, r.size, tuple(r.scale), r.interpolation, r.blur_p, r.solarize_p) for r in cfg.views.rows]
    assert rows == [
        (1, 224, (0.08, 1.0), "bilinear", 1.0, 0.0),
        (1, 224, (0.08, 1.0), "bilinear", 0.1, 0.2),
    ]
    assert (cfg.network.backbone, cfg.network.readout) == ("swin_tiny", "mean")
    assert (cfg.network.drop_path, cfg.network.teacher_drop_path) == (0.2, 0.0)
    (moby,) = cfg.objectives
    assert (moby.name, moby.weight) == ("moby", 2.0)
    assert (moby.options.hidden, moby.options.outputs, moby.options.queue) == (4096, 256, 4096)
    assert (cfg.optim.clip, cfg.optim.clip_mode, cfg.optim.freeze) == (5.0, "global", [])
    assert (cfg.loop.epochs, cfg.loop.batch, cfg.checkpoint.export) == (300, 512, "student")
    assert on_patches.objectives[0] == moby
    assert (on_patches.views, on_patches.schedule, on_patches.loop) == (cfg.views, cfg.schedule, cfg.loop)
    assert [(o.name, o.weight) for o in on_patches.objectives[1:]] == [("moby_patch", 0.2), ("selfpatch", 0.0)]


def test_schedules_of_the_recipe():
    """Momentum 0.99 -> 1, one step early; the rate of the official scheduler, its drop after the warm-up and its
    corrected form; all rates scale with the batch."""
    cfg, per_epoch = load_recipe("moby"), 2502  # ImageNet-1k in batches of 512
    steps = cfg.loop.epochs * per_epoch
    run = optim.build_schedules(cfg.schedule, 512, steps, per_epoch)
    used = [0.99, *run.ema[:-1]]  # of the target's update before step t
    assert [used[0], used[steps // 4], used[steps // 2]] == pytest.approx([0.99, 0.9915, 0.995], abs=5e-5)
    assert used[3 * steps // 4] == pytest.approx(0.9985, abs=5e-5)
    assert run.ema[-1] == 1
    warm = 5 * per_epoch
    for t in (0, 1, 2, warm, warm + 1, steps // 2, steps - 1):
        assert run.lr[t] == pytest.approx(learning_rate(t, steps, warm), rel=1e-12)
    assert run.lr[0] == run.lr[1] == 5e-7
    assert 1 - run.lr[warm + 1] / 1e-3 == pytest.approx(0.0007, abs=5e-5)
    assert set(run.weight_decay) == {0.05}
    double = optim.build_schedules(cfg.schedule, 1024, steps, per_epoch)
    np.testing.assert_allclose(double.lr, 2 * run.lr, rtol=1e-12)
    corrected = optim.build_schedules(load_recipe("moby", ["schedule.lr_rule=dino"]).schedule, 512, steps, per_epoch)
    assert corrected.lr[warm - 1] == corrected.lr[warm] == 1e-3
    assert corrected.lr[0] == 5e-7
    with pytest.raises(UserError, match="warm-up of 50 steps"):
        optim.timm_cosine(1.0, 0.0, 20, 50)
    with pytest.raises(UserError, match=r"schedule.lr_rule=cosine: it is dino or timm"):
        load_recipe("moby", ["schedule.lr_rule=cosine"])


def test_what_is_decayed():
    """Officially every tensor of two or more dimensions; the option takes positions, tokens and tables out."""
    learner = small("moby", *TOKEN)
    named = list(learner.student.named_parameters())
    decayed, rest = ({*g["names"]} for g in optim.param_groups(named))
    assert {"backbone.pos_embed", "backbone.cls_token", "heads.predictor.mlp.3.weight"} <= decayed
    assert {"heads.projector.mlp.1.weight", "heads.projector.mlp.1.bias", "readout.norm.weight"} <= rest
    cfg = load_recipe("moby", ["optim.no_decay=[relative_position_bias_table,pos_embed,cls_token]"])
    corrected = {*optim.build_optimiser(named, cfg.optim).param_groups[0]["names"]}
    assert decayed - corrected == {"backbone.pos_embed", "backbone.cls_token"}


def test_drop_path_is_the_students_alone():
    learner = Learner(load_recipe("moby", [*TINY[:2], *TINY[4:6], *TOKEN, *HEADS]))
    rates = [getattr(b.drop_path1, "drop_prob", 0.0) for b in learner.student.backbone.blocks]
    assert rates == pytest.approx([0, 0.2])
    assert all(isinstance(b.drop_path1, nn.Identity) for b in learner.teacher.backbone.blocks)


# --- the loss and its queues


def test_loss_at_random_initial_weights():
    """About 2 log 4097 = 16.6: random queries in 256 dimensions are nearly orthogonal to random keys."""
    options = [*TINY[:3], *TINY[4:6], *TOKEN, "objectives.moby.hidden=512"]
    learner = Learner(load_recipe("moby", options))
    total, losses, _ = learner(groups(learner, 16, torch.float32), Step())
    assert float(losses["moby.image"]) == pytest.approx(math.log(4097), abs=0.5)
    assert relative(total, 2 * losses["moby.image"]) < 1e-6


def test_views_and_queues_written_out():
    """Three views, one of them local: pairs (t, v) with t global; every view has its own batch statistics."""
    rows = "views.rows=[{count: 2, size: 32}, {count: 1, size: 16}]"
    learner = small("moby", *TOKEN, rows)
    objective, views = learner.objectives["moby"], groups(learner, 3)
    assert objective.pairs == 4

    def outputs(network, x, *names):
        y = network.readout.norm(vit_tokens(network.backbone, x).cls)
        for name in names:
            y = plain_head(network.heads[name])(y)
        return F.normalize(y, dim=1)

    queries = [outputs(learner.student, x, "projector", "predictor") for g in views for x in g.x]
    keys = [outputs(learner.teacher, x, "projector") for x in views[0].x]
    losses = []
    for t in (0, 1):
        for v in range(3):
            if v != t:
                positive = torch.einsum("bc,bc->b", queries[v], keys[t])[:, None]
                logits = torch.cat([positive, queries[v] @ objective.queues.keys[t]], 1) / 0.2
                losses.append(F.cross_entropy(logits, torch.zeros(3, dtype=torch.long)))
    before = objective.queues.keys.clone()
    total, found, stats = learner(views, Step())
    assert relative(found["moby.image"], sum(losses) / 4) < 1e-12
    assert relative(total, sum(losses) / 2) < 1e-12
    numbers = learner.finish_step(stats, 1.0)
    assert relative(objective.queues.keys[:, :, :3], torch.stack(keys).transpose(1, 2)) < 1e-12
    assert torch.equal(objective.queues.keys[:, :, 3:], before[:, :, 3:])
    cosines = [(queries[v] * keys[t]).sum(1).mean() for t in (0, 1) for v in range(3) if v != t]
    assert relative(numbers["moby.positive"], sum(cosines) / 4) < 1e-12
    assert relative(numbers["moby.alike"], torch.cat(keys).mean(0).norm()) < 1e-12


def test_keys_of_all_shares_come_in_their_order():
    """Zeros in the places of other shares, added up: the gathered batch."""
    rows = torch.randn(2, 6, 5)
    parts = [Step(part=i, parts=3).in_batch(rows[:, 2 * i : 2 * i + 2]) for i in range(3)]
    assert torch.equal(sum(parts), rows)


def test_queue_wraps_and_takes_any_batch():
    queues = _contrast.Queues(2, 3, 5)
    assert relative(queues.keys.norm(dim=1), torch.ones(2, 5)) < 1e-6
    plain, at = queues.keys.clone(), 0
    for n in (2, 2, 2, 5, 4, 7):
        keys = torch.randn(2, n, 3)
        for i in range(n):
            plain[:, :, at] = keys[:, i]
            at = (at + 1) % 5
        queues.push(keys)
        if n <= 5:
            assert torch.equal(queues.keys, plain)
            assert int(queues.pointer) == at
        else:  # the newest, wherever they stand
            kept = {tuple(x.tolist()) for x in queues.keys[0].T}
            assert kept == {tuple(x.tolist()) for x in keys[0, -5:]}


def test_queues_begin_alike_in_every_process():
    """Whatever the global stream; another seed gives others."""
    torch.manual_seed(1)
    a = small("moby", *TOKEN).objectives["moby"].queues.keys
    torch.manual_seed(2)
    assert torch.equal(a, small("moby", *TOKEN).objectives["moby"].queues.keys)
    assert not torch.equal(a, small("moby", *TOKEN, "seed=1").objectives["moby"].queues.keys)


def test_info_nce_is_the_plain_one():
    q, k = (F.normalize(torch.randn(9, 6, dtype=torch.float64), dim=1) for _ in range(2))
    queue = F.normalize(torch.randn(6, 8, dtype=torch.float64), dim=0)
    q.requires_grad_()
    own, others = ((q * k).sum(1) / 0.2).exp(), (q @ queue / 0.2).exp().sum(1)
    ours, plain = _contrast.info_nce(q, k, queue, 0.2), -(own / (own + others)).log().sum()
    assert relative(ours, plain) < 1e-12
    assert relative(*(torch.autograd.grad(3 * x, q)[0] for x in (ours, plain))) < 1e-12


def test_momentum_of_one_leaves_the_target():
    learner = small("moby", *TOKEN)
    before = {k: v.clone() for k, v in learner.teacher.named_parameters()}
    _, _, stats = learner(groups(learner, 4), Step())
    learner.finish_step(stats, 1.0)
    assert all(torch.equal(v, before[k]) for k, v in learner.teacher.named_parameters())


def test_target_moves_by_name_and_keeps_its_own_statistics():
    """Encoder and projector follow; the predictor has no counterpart; running statistics are never averaged."""
    learner = small("moby", *TOKEN)
    assert not any("predictor" in k for k in learner.teacher.state_dict())
    _, _, stats = learner(groups(learner, 4), Step())
    student, teacher = ({k: v.clone() for k, v in n.state_dict().items()} for n in (learner.student, learner.teacher))
    learner.finish_step(stats, 0.9)
    for name, value in learner.teacher.state_dict().items():
        follows = "running" not in name and "tracked" not in name
        expected = 0.9 * teacher[name] + 0.1 * student[name] if follows else teacher[name]
        assert torch.equal(value, expected) or relative(value, expected) < 1e-12, name
    assert relative(teacher["heads.projector.mlp.1.running_mean"], student["heads.projector.mlp.1.running_mean"]) > 0.1
    assert teacher["heads.projector.mlp.1.num_batches_tracked"] == 2  # a batch for each view


@pytest.mark.parametrize("recipe", ["moby", "moby_selfpatch"])
@pytest.mark.parametrize("negatives", [True, False])
def test_a_single_image(recipe, negatives):
    """One image in one process: every number is finite, and the queue takes it."""
    more = [f"objectives.moby_patch.negatives={negatives}"] if recipe == "moby_selfpatch" else []
    learner = small(recipe, *more, *(TOKEN if recipe == "moby" else []))
    total, _, stats = learner(groups(learner, 1), Step())
    total.backward()
    numbers = learner.finish_step(stats, 0.9)
    grads = [p.grad for p in learner.student.parameters() if p.grad is not None]
    assert all(torch.isfinite(x).all() for x in [total, *grads, *numbers.values(), *learner.buffers()])
    assert int(learner.objectives["moby"].queues.pointer) == 1


@pytest.mark.parametrize("recipe", ["moby", "moby_selfpatch"])
@pytest.mark.parametrize(("precision", "bound"), [("bf16", 0.05), ("fp16", 0.01)])
def test_low_precision(recipe, precision, bound):
    """Losses of three steps stay near those of float32 (8 and 11 bits of mantissa); weights and queues stay float32."""
    patch = PATCH if recipe == "moby_selfpatch" else TOKEN
    options = [*TINY, *HEADS, *patch, "loop.steps=3", "loop.batch=8", "schedule.warmup_epochs=0"]
    exact, low = (
        Trainer(load_recipe(recipe, [*options, f"loop.precision={p}"]), 3, Ranks("cpu")) for p in ("float32", precision)
    )
    low.scaler = torch.amp.GradScaler("cpu", init_scale=64.0, enabled=precision == "fp16")
    for t in range(3):
        views = groups(exact.learner, 8, torch.float32, seed=t)
        a, b = exact.advance(views), low.advance(views)
        assert float(b.numbers["loss"]) == pytest.approx(float(a.numbers["loss"]), rel=bound)
        assert b.numbers["loss"] != a.numbers["loss"]
    assert {x.dtype for x in low.learner.state_dict().values()} == {torch.float32, torch.int64}


# --- batch norm and the heads


def test_batch_norm_is_torchs():
    """Outputs, gradients, running statistics, in training and after it; channels last, any axes before."""
    ours, theirs = BatchNorm(6).double(), nn.BatchNorm1d(6).double()
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    with torch.no_grad():
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            q.copy_(p.normal_())
    for shape in ((5, 6), (2, 3, 6)):
        x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
        up = torch.randn(shape, dtype=torch.float64)
        a = torch.autograd.grad((ours(x) * up).sum(), (x, *ours.parameters()))
        b = torch.autograd.grad((theirs(x.reshape(-1, 6)).view(shape) * up).sum(), (x, *theirs.parameters()))
        assert max(relative(p, q) for p, q in zip(a, b, strict=True)) < 1e-10
    for key, value in theirs.state_dict().items():
        assert relative(ours.state_dict()[key], value) < 1e-12
    assert relative(ours.eval()(x), theirs.eval()(x.reshape(-1, 6)).view(shape)) < 1e-12


PARTS = [slice(0, 4), slice(4, 5), slice(5, 8)]


def eight_rows():
    """-> rows [8, 5], and what their outputs are multiplied by for a loss"""
    g = torch.Generator().manual_seed(0)
    return (torch.randn(8, 5, dtype=torch.float64, generator=g) for _ in range(2))


def normalise_a_part(rank, folder):
    """One of the three processes below: outputs, gradients and running statistics go into a file."""
    dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=3)
    rows, up = (x[PARTS[rank]] for x in eight_rows())
    norm = BatchNorm(5).double()
    rows.requires_grad_()
    y = norm(rows)
    (y * up).sum().backward()
    found = [y.detach(), rows.grad, norm.weight.grad, norm.bias.grad, norm.running_mean, norm.running_var]
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_batch_norm_over_processes(tmp_path):
    """Three processes with 4, 1 and 3 rows: outputs, gradients and running statistics of the eight rows together."""
    code = f"import sys\nfrom {__name__} import normalise_a_part\nnormalise_a_part(int(sys.argv[1]), sys.argv[2])"
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    parts = [warm.Process(rank, tmp_path, code=code, env=env) for rank in range(3)]
    assert [part.wait() for part in parts] == [0] * 3, [part.err for part in parts]
    y, by_rows, *by_weights, mean, var = zip(*(torch.load(tmp_path / f"{rank}.pt") for rank in range(3)), strict=True)
    rows, up = eight_rows()
    whole = nn.BatchNorm1d(5).double()
    rows.requires_grad_()
    expected = whole(rows)
    (expected * up).sum().backward()
    assert relative(torch.cat(y), expected.detach()) < 1e-12
    assert relative(torch.cat(by_rows), rows.grad) < 1e-10
    for parts, parameter in zip(by_weights, (whole.weight, whole.bias), strict=True):
        assert relative(sum(parts), parameter.grad) < 1e-12
    for rank in range(3):
        assert relative(mean[rank], whole.running_mean) < 1e-12
        assert relative(var[rank], whole.running_var) < 1e-12


def test_batch_norm_of_one_row():
    norm = BatchNorm(3)
    norm.bias.data.uniform_()
    assert torch.equal(norm(torch.randn(1, 3)), norm.bias[None])
    assert torch.isfinite(norm.running_var).all()


def test_head_written_out():
    """Linear, batch norm, ReLU, linear; sizes of the paper's; the framework's initial values."""
    head = BatchNormMlp(384)
    assert sum(p.numel() for p in head.parameters()) == pytest.approx(2.63e6, rel=2e-3)
    assert sum(p.numel() for p in BatchNormMlp(256).parameters()) == pytest.approx(2.11e6, rel=2e-3)
    assert float(head.mlp[0].weight.detach().abs().max()) == pytest.approx(384**-0.5, rel=1e-3)
    deep = BatchNormMlp(4, hidden=6, outputs=3, layers=3)
    assert [type(m).__name__ for m in deep.mlp] == ["Linear", "BatchNorm", "ReLU"] * 2 + ["Linear"]
    assert relative(deep(x := torch.randn(7, 4)), plain_head(deep)(x)) < 1e-5


# --- SelfPatch on MoBY


@pytest.mark.parametrize("negatives", [True, False])
@pytest.mark.parametrize("pool", ["class_attention", "mean"])
def test_patch_term_written_out(negatives, pool):
    """Each patch of the student's against the teacher's summary of its neighbours, in the same view, with and without
    negatives; then what goes into the queue: one target of every image and view."""
    options = [f"objectives.moby_patch.negatives={negatives}", f"objectives.moby_patch.aggregation={pool}"]
    learner = small("moby_selfpatch", *options)
    objective, views = learner.objectives["moby_patch"], groups(learner, 3)
    losses, positive, targets = [], [], []
    for x in views[0].x:
        s = learner.student.readout.norm(vit_tokens(learner.student.backbone, x).patch)
        q = plain_head(learner.student.heads["patch_projector"])(s.flatten(0, 1))
        q = F.normalize(plain_head(learner.student.heads["patch_predictor"])(q), dim=1)
        t = vit_tokens(learner.teacher.backbone, x)
        with torch.no_grad():
            summary = aggregate(learner.teacher.readout, t.patch, chosen(t.patch, t.hw, 4, 1, True), pool)
            y = F.normalize(plain_head(learner.teacher.heads["patch_projector"])(summary.flatten(0, 1)), dim=1)
        cosine = (q * y).sum(1)
        logits = torch.cat([cosine[:, None], q @ objective.queues.keys[0]], 1) / 0.2 if negatives else None
        losses.append(-logits.log_softmax(1)[:, 0].mean() if negatives else (2 - 2 * cosine).mean())
        positive.append(cosine.mean())
        targets.append(y.view(3, 16, -1))
    total, found, stats = learner(views, Step(5))
    assert relative(found["moby_patch.patch"], sum(losses) / 2) < 1e-10
    assert relative(total, 2 * found["moby.image"] + 0.2 * found["moby_patch.patch"]) < 1e-12
    numbers = learner.finish_step(stats, 1.0)
    assert relative(numbers["moby_patch.positive"], sum(positive) / 2) < 1e-10
    assert relative(numbers["moby_patch.alike"], torch.cat(targets).flatten(0, 1).mean(0).norm()) < 1e-10
    assert ("moby_patch.keys" in stats) == negatives
    if negatives:
        new = objective.queues.keys[0, :, :6].T  # of view 0, then of view 1
        for row, own in zip(new, torch.cat(targets), strict=True):
            assert int(((own - row).abs().max(1)[0] < 1e-12).sum()) == 1
        assert int(objective.queues.pointer) == 6


def test_which_patch_goes_into_the_queue():
    """Any patch, another one at another step; by the image's place in the whole batch, not by who has it."""
    keys = torch.arange(16.0).view(1, 1, 16, 1).expand(2, 8, 16, 1)
    whole = one_each(keys, Step(3), 0)
    halves = [one_each(keys[:, :4], Step(3, part=i, parts=2), 0) for i in (0, 1)]
    assert torch.equal(whole, torch.cat(halves, 1))
    assert not torch.equal(whole, one_each(keys, Step(4), 0))
    many = torch.cat([one_each(keys, Step(t), 0) for t in range(50)]).flatten()
    assert len(many.unique()) == 16
    assert abs(float(many.mean()) - 7.5) < 0.5  # 800 draws: a standard error of 0.16


@pytest.mark.parametrize("negatives", [True, False])
def test_the_patch_term_trains_no_class_attention(negatives):
    """As SelfPatch's: no gradient for the class token and its blocks, some for backbone, norm and the patch heads; the
    image term reaches the blocks."""
    learner = small("moby_selfpatch", f"objectives.moby_patch.negatives={negatives}")
    views = groups(learner, 3)

    def of(name):
        outputs = [network(views) for network in (learner.student, learner.teacher)]
        losses, _ = learner.objectives[name](*outputs, views, Step())
        return gradients(sum(losses.values()), learner.student)

    patch, image = of("moby_patch"), of("moby")
    for name, grad in patch.items():
        seen = not name.startswith(("readout.cls", "heads.projector", "heads.predictor"))
        assert (grad is not None and bool(grad.any())) == seen, name
    assert all(image[n] is not None for n in image if n.startswith(("readout.cls", "backbone")))
    assert all(image[n] is None for n in image if n.startswith("heads.patch"))


def test_prototypes_in_place_of_pairs():
    """SelfPatch's own objective on MoBY, as the recipe's header says; the baseline has neither."""
    weights = ["objectives.moby_patch.weight=0", "objectives.selfpatch.weight=0.2"]
    heads = [f"objectives.selfpatch.{h}" for h in ("outputs=14", "hidden=16", "bottleneck=8")]
    learner = small("moby_selfpatch", *weights, *heads)
    assert list(learner.student.heads) == ["projector", "predictor", "p_head"]
    total, losses, stats = learner(groups(learner, 3), Step())
    assert relative(total, 2 * losses["moby.image"] + 0.2 * losses["selfpatch.patch"]) < 1e-12
    assert losses["selfpatch.patch"] > 0.5
    learner.finish_step(stats, 0.9)
    assert learner.objectives["selfpatch"].centre.any()
    assert list(small("moby_selfpatch", "objectives.moby_patch.weight=0").student.heads) == ["projector", "predictor"]


def test_neighbours_clipped_at_the_border():
    """The corrected neighbourhood: another target for the patches at the border."""
    a, b = (small("moby_selfpatch", f"objectives.moby_patch.wrap={w}") for w in (True, False))
    views = groups(a, 2)
    found = [learner(views, Step())[1]["moby_patch.patch"] for learner in (a, b)]
    assert relative(*found) > 1e-6


@pytest.mark.parametrize(
    ("recipe", "options", "words"),
    [
        ("moby", ["objectives.moby.temperature=0"], "temperature=0.0: it must be above 0"),
        ("moby", ["objectives.moby.queue=0"], "objectives.moby.queue=0: it must be at least 1"),
        ("moby", ["views.rows.1.count=0"], "it needs two at least"),
        ("moby_selfpatch", ["network.readout=mean"], "objective moby_patch: aggregation=class_attention needs"),
        ("moby_selfpatch", ["objectives.moby_patch.k=0"], "objectives.moby_patch.k=0"),
        ("moby_selfpatch", ["objectives.moby_patch.queue=-1"], "objectives.moby_patch.queue=-1"),
        ("moby_selfpatch", ["objectives.moby_patch.projector=projector"], "there is a head projector already"),
        ("moby", ["checkpoint.export=both"], "checkpoint.export=both: it is teacher or student"),
    ],
)
def test_mistakes_are_named(recipe, options, words):
    with pytest.raises(UserError, match=re.escape(words)):
        small(recipe, *options)
