"""Objectives: DINO, SelfPatch, what they share, and the contract that others plug into."""

import math
import subprocess
import sys
from functools import partial

import pytest
import torch
from torch import nn

from plain_pretrain import (
    aggregate,
    assert_same_gradients,
    chosen,
    class_attention,
    dino_terms,
    gradients,
    groups,
    near_in_bf16,
    one_thread,  # noqa: F401
    parts_add_up,
    patch_terms,
    relative,
    set_centres,
    tiny,
    views,
    vit_tokens,
)
from selfpatch_bench.pretrain.common.errors import UserError
from selfpatch_bench.pretrain.config import OBJECTIVES, load_recipe
from selfpatch_bench.pretrain.objectives import HeadSpec, Spec, Step, merge
from selfpatch_bench.pretrain.objectives._soft_cross_entropy import CentredSoftmax, CrossEntropy
from selfpatch_bench.pretrain.step import Learner


def plain_outputs(network, group, how=None):
    """A view's tokens through readout and heads, written out: c_head and p_head of one group."""
    patches = vit_tokens(network.backbone, group.x.flatten(0, 1)).patch
    image = network.readout.norm(class_attention(network.readout, patches))
    if how is None:
        own = network.readout.norm(patches)
    else:
        side = math.isqrt(patches.shape[1])
        k, radius, wrap, pool = how
        own = aggregate(network.readout, patches, chosen(patches, (side, side), k, radius, wrap), pool)
    shape = group.x.shape[:2]
    c, p = network.heads["c_head"](image), network.heads["p_head"](own.flatten(0, 1))
    return {"c_head": c.unflatten(0, shape), "p_head": p.unflatten(0, (*shape, -1))}


# --- DINO


@pytest.mark.parametrize(("local", "terms"), [(0, 2), (8, 18), (10, 22)])
def test_dino_terms(local, terms):
    """Loss and gradient against a loop over pairs; 2, 10 and 12 views give 2, 18 and 22 of them."""
    learner = tiny("dino", f"views.rows.2.count={local}")
    set_centres(learner)
    g = groups(learner)
    total, losses, _ = learner(g, Step())
    student, teacher = learner.student(g), learner.teacher(g[:1])
    pairs = dino_terms(views(student, "head"), views(teacher, "head"), learner.objectives["dino"].centre, 0.04)
    assert len(pairs) == terms
    plain = sum(pairs) / terms
    assert relative(total, plain) < 1e-12
    assert torch.equal(losses["dino.image"], total.detach())
    assert_same_gradients(total, plain, learner.student)


def test_dino_centre_by_hand():
    """Mean over the batch and both global views, momentum 0.9, twice; a step uses the centre of the one before."""
    learner = tiny("dino")
    centre = torch.zeros(1, 20, dtype=torch.float64)
    for seed in (1, 2):
        g = groups(learner, seed=seed)
        out = learner.teacher(g[:1])[0]["head"]
        total, _, stats = learner(g, Step())
        pairs = dino_terms(views(learner.student(g), "head"), list(out), centre, 0.04)
        assert relative(total, sum(pairs) / len(pairs)) < 1e-12
        learner.finish_step(stats, 1.0)
        centre = 0.9 * centre + 0.1 * out.mean((0, 1))
        assert relative(learner.objectives["dino"].centre, centre) < 1e-12


def test_dino_centre_over_all_views():
    learner = tiny("selfpatch")
    assert learner.teacher_views == "all"
    g = groups(learner)
    every = torch.cat([o["c_head"].flatten(0, 1) for o in learner.teacher(g)])
    assert len(every) == 5 * 2
    learner.finish_step(learner(g, Step())[2], 1.0)
    assert relative(learner.objectives["dino"].centre, 0.1 * every.mean(0)) < 1e-12


def test_teacher_temperature_warms_up():
    learner = tiny("dino", "objectives.dino.teacher_temperature=0.07", "objectives.dino.teacher_temperature_epochs=3")
    g = groups(learner)
    student, teacher = (views(net(s), "head") for net, s in ((learner.student, g), (learner.teacher, g[:1])))
    for epoch, tau in enumerate([0.04, 0.055, 0.07, 0.07]):
        pairs = dino_terms(student, teacher, 0, tau)
        assert relative(learner(g, Step(epoch=epoch))[0], sum(pairs) / len(pairs)) < 1e-12


# --- SelfPatch

OPTIONS = [
    ([], (4, 1, True, "class_attention")),
    (["wrap=false"], (4, 1, False, "class_attention")),
    (["radius=2", "k=8"], (8, 2, True, "class_attention")),
    (["radius=all", "k=2"], (2, "all", True, "class_attention")),
    (["aggregation=mean", "wrap=false", "k=8"], (8, 1, False, "mean")),
]


@pytest.mark.parametrize(("options", "how"), OPTIONS, ids=lambda v: "-".join(map(str, v)) or "official")
def test_selfpatch_is_the_plain_one(options, how):
    """Both losses and every gradient against sequences and loops, for the official options and others."""
    learner = tiny("selfpatch", *(f"objectives.selfpatch.{o}" for o in options))
    set_centres(learner)
    g = groups(learner)
    total, losses, _ = learner(g, Step())
    student = [plain_outputs(learner.student, v) for v in g]
    with torch.no_grad():
        teacher = [plain_outputs(learner.teacher, v, how) for v in g]
    c, c_p = (learner.objectives[n].centre for n in ("dino", "selfpatch"))
    pairs = dino_terms(views(student, "c_head"), views(teacher, "c_head"), c, 0.04)
    patches = patch_terms(views(student, "p_head"), views(teacher, "p_head"), c_p, 0.04)
    assert len(patches) == 5
    plain = sum(pairs) / len(pairs) + 0.1 * sum(patches) / len(patches)
    assert relative(losses["selfpatch.patch"], sum(patches) / len(patches)) < 1e-12
    assert relative(total, plain) < 1e-12
    assert_same_gradients(total, plain, learner.student)


def test_patch_term_has_a_term_for_every_view():
    learner = tiny("selfpatch", "views.rows.2.count=8")
    g = groups(learner, batch=1)
    student, teacher = learner.student(g), learner.teacher(g)
    terms = patch_terms(views(student, "p_head"), views(teacher, "p_head"), 0, 0.04)
    assert len(terms) == 10
    assert relative(learner(g, Step())[1]["selfpatch.patch"], sum(terms) / 10) < 1e-12


def test_patch_term_trains_backbone_norm_and_head_only():
    learner = tiny("selfpatch", "objectives.dino.weight=0")
    grads = gradients(learner(groups(learner), Step())[0], learner.student)
    for name, grad in grads.items():
        if name.startswith(("readout.cls", "heads.c_head")):
            assert grad is None or not grad.any(), name
        else:
            assert grad is not None, name
            assert grad.any(), name
    assert {"readout.norm.weight", "backbone.pos_embed", "heads.p_head.mlp.0.weight"} <= grads.keys()


def test_patch_centre_by_hand():
    """Two steps; views of 16 and of 4 patches count by their patches."""
    learner = tiny("selfpatch")
    centre = torch.zeros(1, 20, dtype=torch.float64)
    for seed in (1, 2):
        g = groups(learner, seed=seed)
        rows = torch.cat([o["p_head"].flatten(0, 2) for o in learner.teacher(g)])
        assert len(rows) == 2 * (2 * 16 + 3 * 4)
        learner.finish_step(learner(g, Step())[2], 1.0)
        centre = 0.9 * centre + 0.1 * rows.mean(0)
        assert relative(learner.objectives["selfpatch"].centre, centre) < 1e-12


def test_global_views_only():
    """The corrected option: without the local patch term the teacher need not see local views."""
    learner = tiny("selfpatch", "objectives.selfpatch.views=global", "objectives.dino.centre_views=global")
    assert learner.teacher_views == "global"
    seen = []
    learner.teacher.register_forward_hook(lambda m, i, out: seen.append([o is not None for o in out]))
    learner.student.register_forward_hook(lambda m, i, out: seen.append(["p_head" in o for o in out]))
    g = groups(learner)
    loss = learner(g, Step())[1]["selfpatch.patch"]
    assert seen == [[True, False], [True, False]]
    terms = patch_terms(*(views(net(g[:1]), "p_head") for net in (learner.student, learner.teacher)), 0, 0.04)
    assert relative(loss, sum(terms) / 2) < 1e-12


def test_teacher_makes_no_image_outputs_that_nobody_reads():
    """It sees local views for the patch term; with a centre over targets only, its image head leaves them out."""
    learner = tiny("selfpatch", "objectives.dino.centre_views=global")
    assert [sorted(o) for o in learner.teacher(groups(learner))] == [["c_head", "image", "p_head"], ["p_head"]]


def test_weight_zero_builds_nothing():
    learner = tiny("selfpatch", "objectives.selfpatch.weight=0")
    assert list(learner.objectives) == ["dino"]
    assert list(learner.student.heads) == ["c_head"]
    assert list(learner.teacher.heads) == ["c_head", "image"]
    total, losses, _ = learner(groups(learner), Step())
    assert list(losses) == ["dino.image"]
    assert all(g is not None for g in gradients(total, learner.student).values())


def test_weights_scale_the_parts():
    learner = tiny("selfpatch", "objectives.dino.weight=2", "objectives.selfpatch.weight=0.3")
    total, losses, _ = learner(groups(learner), Step())
    assert relative(total, 2 * losses["dino.image"] + 0.3 * losses["selfpatch.patch"]) < 1e-12


# --- both


@pytest.mark.parametrize("recipe", ["dino", "selfpatch"])
def test_parts_of_a_batch_add_up(recipe):
    whole = tiny(recipe)
    parts_add_up(whole, tiny(recipe), groups(whole, 6))


@pytest.mark.parametrize("recipe", ["dino", "selfpatch"])
def test_one_image_is_enough(recipe):
    learner = tiny(recipe)
    total, _, stats = learner(groups(learner, batch=1), Step())
    assert torch.isfinite(total)
    assert all(torch.isfinite(v) for v in learner.finish_step(stats, 0.9).values())


@pytest.mark.parametrize("recipe", ["dino", "selfpatch"])
def test_entropy_and_divergence_in_the_log(recipe):
    """Entropy of the targets plus KL is the loss; a teacher of one prototype has entropy 0, an even one log K."""
    learner = tiny(recipe)
    g = groups(learner)
    _, losses, stats = learner(g, Step())
    found = learner.finish_step(stats, 1.0)
    for name in learner.objectives:
        loss = next(v for k, v in losses.items() if k.startswith(f"{name}."))
        assert relative(found[f"{name}.entropy"] + found[f"{name}.kl"], loss) < 1e-12
        assert 0.01 < found[f"{name}.entropy"] < math.log(20) - 0.01
    for name in learner.student.heads:
        head = learner.teacher.heads[name]
        head.last_layer.weight_v.data[:] = head.last_layer.weight_v.data[:1]
    for objective in learner.objectives.values():
        objective.centre.zero_()
    found = learner.finish_step(learner(g, Step())[2], 1.0)
    assert all(float(v) == pytest.approx(math.log(20), rel=1e-9) for k, v in found.items() if k.endswith("entropy"))


def test_runs_under_bf16_autocast():
    near_in_bf16(partial(tiny, "selfpatch"), partial(groups, batch=4))


def test_cross_entropy_of_half_precision_keeps_small_gradients():
    """float16 logits, a factor far below float16's smallest number, as without loss scaling it would be lost."""
    z = torch.randn(4, 50).half().requires_grad_()
    targets = torch.randn(4, 50).softmax(-1)
    scale = 2.0**16  # GradScaler's
    (CrossEntropy(0.1)(targets, z).sum() * 1e-6 * scale).backward()
    exact = z.detach().double().requires_grad_()
    plain = -(targets * (exact / 0.1).log_softmax(-1)).sum()
    (plain * 1e-6 * scale).backward()
    assert z.grad.dtype == torch.float16
    assert relative(z.grad, exact.grad) < 2e-3  # two roundings to 11 bits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_as_many_outputs_as_dino_has(dtype):
    """65536 cosines, the centre and temperatures of DINO, a loss scale under fp16: loss and gradient against the plain
    expression in float64 of the same cosines; no more entries of the gradient are lost than in the official form."""
    noise = torch.Generator().manual_seed(0)
    teacher, student = (torch.randn(n, 2, 65536, generator=noise, dtype=torch.float64) / 16 for n in (1, 3))
    teacher, centre = teacher[0].float(), torch.randn(1, 65536, generator=noise) / 100
    scale = 2.0**16 if dtype == torch.float16 else 1.0
    rows = 640  # of ten views of 64 images, of which six are looked at
    student = student.to(dtype).requires_grad_()
    p, entropy = CentredSoftmax()(teacher, centre, torch.tensor(0.04))
    loss = CrossEntropy(0.1)(p, student).sum() / rows
    (found,) = torch.autograd.grad(loss * scale, student)

    exact = student.detach().double().requires_grad_()
    q = ((teacher.double() - centre.double()) / torch.tensor(0.04).double()).softmax(-1)
    torch.testing.assert_close(p.double(), q, rtol=2e-5, atol=0)
    torch.testing.assert_close(entropy.double(), -(q * q.log()).sum(-1), rtol=1e-6, atol=0)
    plain = -(q * (exact / 0.1).log_softmax(-1)).sum() / rows
    (wanted,) = torch.autograd.grad(plain * scale, exact)
    torch.testing.assert_close(loss.double(), plain, rtol=1e-6, atol=0)
    assert found.dtype == dtype
    assert torch.cosine_similarity(found.double().flatten(), wanted.flatten(), 0) > 1 - 1e-5
    if dtype == torch.float32:
        torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-6 * float(wanted.abs().max()))
    official = student.detach().clone().requires_grad_()
    # Under autocast softmax is float32 and the division is not.
    term = torch.sum(-q.float() * (official / 0.1).log_softmax(-1, dtype=torch.float32), dim=-1).sum() / rows
    (theirs,) = torch.autograd.grad(term * scale, official)
    assert (found == 0).sum() <= (theirs == 0).sum()


# --- the contract


def test_merged_needs():
    one = Spec({"a": HeadSpec(nn.Identity)}, bn_scope="view")
    two = Spec({"b": HeadSpec(nn.Identity, bn_scope="group")}, teacher_views="all", needs_mask=True, bn_scope="view")
    spec = merge({"one": one, "two": two})
    assert (spec.teacher_views, spec.needs_mask) == ("all", True)
    assert {n: h.bn_scope for n, h in spec.heads.items()} == {"a": "view", "b": "group"}
    with pytest.raises(UserError, match="objective three: there is a head a already"):
        merge({"one": one, "three": one})
    with pytest.raises(UserError, match="cannot be called patch"):
        merge({"one": Spec({"patch": HeadSpec(nn.Identity)})})


@pytest.mark.parametrize(
    ("recipe", "options", "said"),
    [
        ("selfpatch", ["objectives.selfpatch.aggregation=max"], "class_attention or mean"),
        ("selfpatch", ["objectives.selfpatch.views=none"], "views=none"),
        ("selfpatch", ["objectives.selfpatch.k=0"], "k=0"),
        ("selfpatch", ["objectives.selfpatch.head=c_head"], "there is a head c_head already"),
        ("selfpatch", ["network.readout=mean"], "needs network.readout=class_attention"),
        ("selfpatch", ["views.rows.2.size=16"], "a view of a single patch has no neighbours"),
        ("selfpatch", ["objectives.selfpatch.radius=wide"], "radius wide"),
        ("dino", ["objectives.dino.centre_views=some"], "centre_views=some: it is global or all"),
        ("dino", ["objectives.dino.student_temperature=0"], "student_temperature=0.0: it must be above 0"),
        ("dino", ["views.rows.1.count=0", "views.rows.2.count=0"], "needs two at least"),
        ("ibot", ["views.mask.kind=none"], "set views.mask.kind=block"),
        (
            "ibot",
            ["objectives.ibot.shares=null", "objectives.ibot.own_last_layer=true"],
            "own_last_layer=true",
        ),
        ("ibot", ["objectives.ibot.shares=other"], "shares the module of other"),
        ("pwself", ["objectives.pwself.centre=token"], "centre=token: it is position, kind or prototype"),
        ("pwself", ["views.rows.1.count=0", "views.rows.2.count=0"], "needs two at least"),
        ("pwself", ["views.unit=row"], "views.unit=row"),
        ("sere", ["objectives.sere.border=reflect"], "border=reflect: it is zeros or repeat"),
        ("sere", ["objectives.sere.no_overlap=skip"], "no_overlap=skip: it is constant or drop"),
        ("sere", ["objectives.sere.samples=1"], "samples=1: it must be at least 2"),
        ("sere", ["objectives.sere.channel_temperature=0"], "channel_temperature=0.0: it must be above 0"),
        ("sere", ["objectives.sere.spatial=-1"], "spatial=-1.0: it must be at least 0"),
        ("sere", ["objectives.sere.spatial=0", "objectives.sere.channel=0"], "must not both be 0"),
    ],
)
def test_options_that_cannot_work(recipe, options, said):
    with pytest.raises(UserError, match=said):
        tiny(recipe, *options)


OWN = '''
"""Cosine: image vectors of two views agree."""
from dataclasses import dataclass
from functools import partial
import torch
from torch import nn
from selfpatch_bench.pretrain import HeadSpec, Objective, Spec

@dataclass
class Config:
    width: int = 6

class Objective(Objective):
    @staticmethod
    def spec(cfg, net):
        heads = {"near": HeadSpec(partial(nn.Linear, out_features=cfg.width), "image")}
        heads["guess"] = HeadSpec(partial(nn.Linear, out_features=cfg.width), "near", side="student")
        return Spec(heads)

    def __init__(self, cfg, net):
        super().__init__(cfg, net)
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, student, teacher, groups, step):
        near = torch.cosine_similarity(student[0]["guess"], teacher[0]["near"].flip(0), -1).mean()
        return {"near": 1 - near}, {"near": near.detach() * 2, "images": near.new_tensor(2.0)}

    def update(self, stats):
        self.steps += 1
        return {"cosine": stats["near"] / stats["images"]}
'''

RECIPE = """
# A method of a user's own.
views: {rows: [{count: 2, size: 64}]}
network: {backbone: vit_tiny_patch16, readout: mean, overrides: {embed_dim: 24, depth: 1, num_heads: 2}}
objectives: [{name: cosine, weight: 1.0, width: 4}]
"""


def test_an_objective_and_a_recipe_dropped_into_a_folder(tmp_path, monkeypatch):
    for kind, name, text in (("objectives", "cosine.py", OWN), ("recipes", "mine.yaml", RECIPE)):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / name).write_text(text)
    monkeypatch.setenv("SELFPATCH_PLUGINS", str(tmp_path))
    assert OBJECTIVES.get("cosine").doc == "Cosine: image vectors of two views agree."
    learner = Learner(load_recipe("mine", ["objectives.cosine.width=5"])).double()
    total, losses, stats = learner(groups(learner), Step())
    total.backward()
    assert learner.student.heads["guess"].weight.shape == (5, 5)
    assert list(learner.teacher.heads) == ["near", "image"]
    assert all(p.grad is not None for p in learner.student.parameters())
    found = learner.finish_step(stats, 0.9)
    assert float(found["cosine.cosine"]) == pytest.approx(1 - float(losses["cosine.near"]), rel=1e-12)
    assert float(learner.objectives["cosine"].steps) == 1


def test_what_an_objective_imports_comes_without_torch():
    """The names that plug-ins import from the package itself; the package alone is there at once."""
    script = """
import sys
import selfpatch_bench.pretrain as core
assert "torch" not in sys.modules
from selfpatch_bench.pretrain import Aggregated, HeadSpec, Objective, Spec
from selfpatch_bench.pretrain import objectives
assert Objective is objectives.Objective and Spec is objectives.Spec
assert not hasattr(core, "objective")
"""
    subprocess.run([sys.executable, "-c", script], check=True)
