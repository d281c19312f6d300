"""iBOT: masks, the patch term, and its head; the recorded step is in test_sere.py."""

import json
import math
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from plain_pretrain import (  # noqa: F401
    assert_same_gradients,
    gradients,
    groups,
    near_in_bf16,
    one_thread,
    parts_add_up,
    relative,
    set_centres,
    tiny,
    vit_tokens,
)
from selfpatch_bench.pretrain.common.errors import UserError
from selfpatch_bench.pretrain.config import from_dict, load_recipe, to_dict
from selfpatch_bench.pretrain.data.images import open_source
from selfpatch_bench.pretrain.data.loader import batches
from selfpatch_bench.pretrain.data.masks import draw_mask
from selfpatch_bench.pretrain.data.views import Mask, Views, ViewSpec
from selfpatch_bench.pretrain.objectives import Step
from training import pictures

BLOCK = Mask("block")


def ibot(*options, **more):
    return tiny("ibot", *options, **more)


def masked(learner, batch=3, seed=1, share=0.4, **more):
    """Groups with masks on the global views: random ones, and an empty one."""
    made = groups(learner, batch, seed=seed, **more)
    g = torch.Generator().manual_seed(seed)
    made[0].mask = torch.rand(2, batch, 4, 4, generator=g) < share
    made[0].mask[1, 0] = False
    return made


def plain(learner, groups, tau=0.04):
    """The term as published: every patch through the head, rows weighted by mask / #mask, views one by one."""
    objective, total = learner.objectives["ibot"], 0.0
    x, mask = groups[0].x, groups[0].mask
    head_s, head_t = (
        n.heads["patch_head" if "patch_head" in n.heads else "head"] for n in (learner.student, learner.teacher)
    )
    for v in range(len(x)):
        student = learner.student.readout.norm(vit_tokens(learner.student.backbone, x[v], mask[v]).patch)
        with torch.no_grad():
            teacher = learner.teacher.readout.norm(vit_tokens(learner.teacher.backbone, x[v]).patch)
            p = ((head_t(teacher.flatten(0, 1)) - objective.centre) / tau).softmax(-1).view(*teacher.shape[:2], -1)
        log_q = F.log_softmax(head_s(student.flatten(0, 1)) / 0.1, -1).view(*p.shape)
        rows, weight = -(p * log_q).sum(-1), mask[v].flatten(1).to(log_q)
        total = total + ((rows * weight).sum(1) / weight.sum(1).clamp(min=1)).mean()
    return total / len(x)


# --- masks


def official_mask(rng, h, w, ratio):
    """The block masking of methods.md 3.2 with Python's own generator."""
    mask, count = np.zeros((h, w), bool), 0
    while count < ratio * h * w:
        left_to_hide, delta = ratio * h * w - count, 0
        for _ in range(10):
            area = rng.uniform((min(h, w) // 3) ** 2, left_to_hide)
            aspect = math.exp(rng.uniform(math.log(0.3), math.log(1 / 0.3)))
            a, b = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if b < w and a < h:
                top, left = rng.randint(0, h - a), rng.randint(0, w - b)
                new = a * b - mask[top : top + a, left : left + b].sum()
                if 0 < new <= left_to_hide:
                    mask[top : top + a, left : left + b] = True
                    delta = new
            if delta:
                break
        if not delta:
            break
        count += delta
    return mask


def test_masks_are_distributed_as_the_official_ones():
    """Share of hidden patches, and how they cling together: means of 3000 draws within four standard errors of as many
    by the published rule; half of the masks are empty, and no share exceeds the largest."""
    rng, count = random.Random(0), 3000
    ratios = [rng.uniform(0.1, 0.5) if rng.random() < 0.5 else 0.0 for _ in range(count)]
    theirs = np.stack([official_mask(rng, 14, 14, r) for r in ratios])
    ours = np.stack([draw_mask(BLOCK, 14, 14, 0, 0, i, i % 2) for i in range(count)])
    assert abs((~ours.any((1, 2))).mean() - 0.5) < 4 * 0.5 / math.sqrt(count)
    assert ours.mean((1, 2)).max() <= 0.5
    assert ours.mean() == pytest.approx(0.147, abs=0.008)  # the measured mean; 0.155 / sqrt(3000) is 0.0028
    some = [m[m.any((1, 2))].astype(float) for m in (ours, theirs)]
    for statistic in (
        lambda m: m.mean((1, 2)),
        lambda m: (m[:, 1:] * m[:, :-1]).mean((1, 2)),  # neighbours hidden together, down and across
        lambda m: (m[:, :, 1:] * m[:, :, :-1]).mean((1, 2)),
        lambda m: (m[:, 1:] * m[:, :-1]).sum((1, 2)) / m.sum((1, 2)),  # the same, by what is hidden
        lambda m: m[:, 0].mean(1),  # at the border
    ):
        a, b = (statistic(m) for m in some)
        error = math.sqrt(a.var() / len(a) + b.var() / len(b))
        assert abs(a.mean() - b.mean()) < 4 * error


def test_masks_stay_what_they_were():
    """A run that is resumed with a newer version must go on with the same masks; any grid has some."""
    rows = ["".join(map(str, row)) for row in draw_mask(Mask("block", [0.3], [0.0]), 6, 6, 0, 1, 2, 1).astype(int)]
    assert rows == ["000110", "000110", "000110", "000110", "000110", "000000"]
    for h, w in ((2, 2), (8, 8), (5, 9), (28, 28)):
        found = [draw_mask(Mask("block", [0.4], [0.0]), h, w, 0, 0, i, 0) for i in range(50)]
        assert max(m.mean() for m in found) <= 0.4
        assert sum(m.any() for m in found) > 25
        assert len({m.tobytes() for m in found}) > (1 if h > 2 else 0) * 20


def test_masks_come_with_the_batch(tmp_path):
    """On the global views only; of the image and view, whatever the number of workers and processes."""
    views = Views([ViewSpec(2, 32), ViewSpec(2, 16)], mask=Mask("block", [0.3], [0.1]))
    source = open_source(pictures(tmp_path))
    (whole, *_) = batches(source, views, seed=3, batch=8, patch=8)
    assert whole.groups[1].mask is None
    assert whole.groups[0].mask.shape == (2, 8, 4, 4)
    for b, number in enumerate(whole.index.tolist()):
        for v in (0, 1):
            expected = draw_mask(views.mask, 4, 4, 3, 0, number, v)
            assert torch.equal(whole.groups[0].mask[v, b], torch.from_numpy(expected))
    (part, *_) = batches(source, views, seed=3, batch=8, patch=8, rank=1, world=2, workers=1)
    assert torch.equal(part.groups[0].mask, whole.groups[0].mask[:, 4:])
    with pytest.raises(UserError, match="32 pixels with patches of 5"):
        batches(source, views, seed=3, batch=8, patch=5)


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("kind=blocks", "views.mask.kind=blocks"),
        ("ratio=[0.3]", "of the same length"),
        ("spread=[0.0, 0.4]", "within 0 and 1"),
        ("aspect=[0, 1]", "aspect"),
    ],
)
def test_masks_that_cannot_be_drawn(option, said):
    with pytest.raises(UserError, match=said):
        load_recipe("ibot", [f"views.mask.{option}"])


def test_masks_go_through_the_configuration():
    cfg = load_recipe("ibot", ["views.mask.ratio=[0.5]", "views.mask.spread=[0.1]"])
    again = from_dict(json.loads(json.dumps(to_dict(cfg))))
    assert again.views.mask == cfg.views.mask == Mask("block", [0.5], [0.1])


# --- the term


@pytest.mark.parametrize(
    "options",
    [[], ["objectives.ibot.own_last_layer=true", "objectives.ibot.outputs=12"], ["objectives.ibot.shares=null"]],
    ids=["shared head", "shared MLP", "own head"],
)
def test_ibot_is_the_plain_one(options):
    """Loss and every gradient; one of the masks is empty."""
    learner = ibot(*options)
    set_centres(learner)
    g = masked(learner)
    _, losses, _ = learner(g, Step())
    theirs = plain(learner, g)
    assert relative(losses["ibot.patch"], theirs) < 1e-12
    learner.weights["dino"] = 0.0
    wanted = assert_same_gradients(learner(g, Step())[0], theirs, learner.student)
    biggest = max(float(v.abs().max()) for v in wanted.values())
    assert wanted["backbone.masked_embed"].abs().max() > 1e-4 * biggest


def test_whose_head_it_is():
    """Modules, their names and sizes, in both networks; shared ones are trained, and followed, once."""
    for options, names, last in (
        ([], ["head"], (20, 16)),
        (["objectives.ibot.own_last_layer=true", "objectives.ibot.outputs=12"], ["head", "patch_head"], (12, 16)),
        (["objectives.ibot.shares=null", "objectives.ibot.bottleneck=8"], ["head", "patch_head"], (20, 8)),
    ):
        learner = ibot(*options)
        for network in (learner.student, learner.teacher):
            assert [name for name in network.heads if name != "image"] == names
            assert network.heads[names[-1]].last_layer.weight_v.shape == last
        both = learner.student.heads["head"], learner.student.heads[names[-1]]
        assert (both[0].mlp is both[1].mlp) == ("objectives.ibot.shares=null" not in options)
        with torch.no_grad():
            for p in learner.student.parameters():
                p.add_(1.0)
        learner.ema.update(0.5)
        student = dict(learner.student.named_parameters())
        assert "backbone.masked_embed" in student
        assert not hasattr(learner.teacher.backbone, "masked_embed")
        assert student.keys() - {"backbone.masked_embed"} == dict(learner.teacher.named_parameters()).keys()


def test_class_tokens_of_global_views_come_from_the_masked_input():
    learner = ibot()
    g = masked(learner)
    student = [o["head"] for o in learner.student(g)]
    g[0].mask = torch.zeros_like(g[0].mask)
    clear = [o["head"] for o in learner.student(g)]
    assert relative(student[0][1, 0], clear[0][1, 0]) == 0  # the empty mask
    assert relative(student[0][0], clear[0][0]) > 1e-2
    assert torch.equal(student[1], clear[1])


def test_centre_by_hand():
    """Two steps: all patches of both global views count, masked or not; a step uses the centre of the one before."""
    learner = ibot()
    centre = torch.zeros(1, 20, dtype=torch.float64)
    for seed in (1, 2):
        g = masked(learner, seed=seed)
        rows = learner.teacher(g[:1])[0]["patch_head"].flatten(0, 2)
        assert len(rows) == 2 * 3 * 16
        _, losses, stats = learner(g, Step())
        assert relative(losses["ibot.patch"], plain(learner, g)) < 1e-12
        learner.finish_step(stats, 1.0)
        centre = 0.9 * centre + 0.1 * rows.mean(0)
        assert relative(learner.objectives["ibot"].centre, centre) < 1e-12


def test_parts_of_a_batch_add_up():
    """Shares of a batch with masks of their own sizes give the whole one's loss, gradient, centre and log."""
    whole = ibot()
    parts_add_up(whole, ibot(), masked(whole, batch=6))


def test_entropy_and_divergence_are_of_the_views_with_a_mask():
    learner = ibot()
    g = masked(learner)
    _, losses, stats = learner(g, Step())
    found = learner.finish_step(stats, 1.0)
    share = g[0].mask.flatten(2).any(2).double().mean()
    assert share < 1
    assert relative((found["ibot.entropy"] + found["ibot.kl"]) * share, losses["ibot.patch"]) < 1e-12


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_one_image_is_enough(share):
    """With nothing masked the term is 0, and nothing of it reaches the network."""
    learner = ibot("objectives.dino.weight=0", "objectives.ibot.shares=null")
    g = masked(learner, batch=1, share=share)
    total, _, stats = learner(g, Step())
    assert torch.isfinite(total)
    assert all(torch.isfinite(v) for v in learner.finish_step(stats, 0.9).values())
    grads = [v for v in gradients(total, learner.student).values() if v is not None]
    assert any(v.any() for v in grads) == bool(share)
    assert bool(total) == bool(share)


def test_outputs_of_a_shared_head():
    learner = ibot("objectives.ibot.outputs=12")
    with pytest.raises(UserError, match="outputs=12 has to be the 20 of the head head that it shares"):
        learner(masked(learner), Step())


def test_runs_under_bf16_autocast():
    near_in_bf16(ibot, masked)
