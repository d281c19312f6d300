"""SERE: the recorded step of the official code, feature sampling, and the relations written out."""

import math
import re
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from conftest import golden_cases
from plain_pretrain import (  # noqa: F401
    assert_same_gradients,
    gradients,
    groups,
    heads,
    near_in_bf16,
    one_thread,
    relative,
    tiny,
    vit_tokens,
)
from selfpatch_bench.pretrain import optim
from selfpatch_bench.pretrain.config import load_recipe
from selfpatch_bench.pretrain.data.group import Group
from selfpatch_bench.pretrain.geometry import overlap_grid, sampling
from selfpatch_bench.pretrain.objectives import Step
from selfpatch_bench.pretrain.step import Learner

STEPS = golden_cases("sere_step*.npz")


def our_name(key):
    """Official parameter name -> ours, None for what we have not: the teacher's predictors, counters."""
    if match := re.match(r"backbone\.(channel|pixel)_sere(_local)?\.(.*)", key):
        kind, local, rest = match.groups()
        return f"heads.{'spatial' if kind == 'pixel' else 'channel'}.{1 if local else 0}.{rest}"
    if key.startswith("backbone.norm."):
        return key.replace("backbone.", "readout.")
    return f"heads.{key}" if key.startswith("head.") else key


class Case:
    """A recorded step as a learner with its weights and centres."""

    def __init__(self, path):
        self.z = z = np.load(path)
        images = [torch.from_numpy(z[k]).float() for k in sorted(k for k in z.files if re.fullmatch(r"image\d+", k))]
        depth = 1 + max(int(m[1]) for k in z.files if (m := re.match(r"student\.backbone\.blocks\.(\d+)", k)))
        width = z["student.backbone.pos_embed"].shape[-1]
        last = z["student.head.last_layer.weight_v"].shape
        head = {"outputs": last[0], "bottleneck": last[1], "hidden": z["student.head.mlp.2.weight"].shape[0]}
        head |= {"teacher_temperature": 0.07, "teacher_temperature_epochs": 2}
        sizes = [images[v].shape[-1] for v in (0, 1, 2)]
        options = [
            f"network.backbone=vit_small_patch{z['student.backbone.patch_embed.proj.weight'].shape[-1]}",
            f"network.overrides={{embed_dim: {width}, depth: {depth}, num_heads: 3}}",
            "network.drop_path=0",
            *(f"views.rows.{v}.size={size}" for v, size in enumerate(sizes)),
            f"objectives.sere.samples={z['grid_global0'].shape[1]}",
            f"objectives.sere.local_samples={z['grid_g0_local0'].shape[1]}",
            f"views.rows.2.count={len(images) - 2}",
            *(f"objectives.{n}.{k}={v}" for n in ("dino", "ibot") for k, v in head.items()),
        ]
        self.learner = learner = Learner(load_recipe("sere", options))
        for side in ("student", "teacher"):
            net = getattr(learner, side)
            given = {our_name(k[8:]): torch.from_numpy(z[k]) for k in z.files if k.startswith(f"{side}.")}
            own = net.state_dict()
            assert own.keys() <= given.keys()
            spare = given.keys() - own.keys()
            assert all("last_layer2" in k or (side == "teacher" and "predictor" in k) for k in spare)
            net.load_state_dict({k: given[k].view(v.shape) for k, v in own.items()})
        learner.objectives["dino"].centre.copy_(torch.from_numpy(z["center_before"]))
        learner.objectives["ibot"].centre.copy_(torch.from_numpy(z["center2_before"][0]))
        boxes = torch.from_numpy(z["boxes"]).transpose(0, 1)  # [V, B, 5]
        masks = torch.from_numpy(np.stack([z["mask0"], z["mask1"]]))
        self.groups = [
            Group(torch.stack(images[part]), boxes[part, :, :4].float(), boxes[part, :, 4].bool(), mask)
            for part, mask in ((slice(0, 2), masks), (slice(2, None), None))
        ]

    def tensor(self, key):
        return torch.from_numpy(np.asarray(self.z[key]))


@pytest.fixture(scope="module", params=STEPS)
def case(request):
    return Case(request.param)


def test_losses_centres_and_gradients(case):
    learner = case.learner
    total, losses, stats = learner(case.groups, Step(epoch=1))
    total.backward()
    assert relative(total, case.tensor("loss")) < 1e-5
    weights = {"dino.image": ("cls", 1), "ibot.patch": ("patch", 1)}
    weights |= {"sere.spatial": ("spatial", 0.2), "sere.channel": ("channel", 0.5)}
    for ours, (official, weight) in weights.items():
        assert relative(losses[ours] / weight, case.tensor(f"loss_{official}")) < 1e-5, ours
    recorded = {our_name(k[5:]): case.tensor(k) for k in case.z.files if k.startswith("grad.")}
    ours = {n: p.grad for n, p in learner.student.named_parameters() if p.grad is not None}
    assert ours.keys() == recorded.keys()
    for name, grad in recorded.items():
        assert relative(ours[name].view(grad.shape), grad) < 1e-5, name
    numbers = learner.finish_step(stats, 1.0)
    for name in ("spatial", "channel"):
        assert relative(numbers[f"sere.{name}_loss"], case.tensor(f"loss_{name}")) < 1e-5
    for name, key in (("dino", "center_after"), ("ibot", "center2_after")):
        assert relative(learner.objectives[name].centre, case.tensor(key).view(1, -1)) < 1e-5


def test_recorded_grids(case):
    """Points where two global views, and a local and a global one, see their overlap; float32 there."""
    (a, b), checked = case.groups, 0
    for names, one, v, two, w in (
        (("grid_global0", "grid_global1"), a, 0, a, 1),
        (("grid_g0_local0", "grid_local0_g0"), a, 0, b, 0),
    ):
        if names[0] in case.z.files:
            recorded = [case.tensor(n) for n in names]
            found = overlap_grid(one.box[v], one.flip[v], two.box[w], two.flip[w], recorded[0].shape[1])
            for ours, theirs in zip(found[:2], recorded, strict=True):
                assert relative(ours, theirs) < 1e-5
                checked += 1
    assert checked


# --- geometry


def boxes(*rows):
    """(left, top, width, height, flip) -> box [B, 4], flip [B]"""
    rows = torch.tensor(rows)
    return rows[:, :4].float(), rows[:, 4].bool()


def test_grid_of_the_specification():
    a, b, valid = overlap_grid(*boxes((10, 20, 200, 100, 0)), *boxes((60, 40, 200, 100, 1)), 3)
    assert valid.tolist() == [True]
    for grid, x, y in ((a, (-0.5, 0.25, 1), (-0.6, 0.2, 1)), (b, (1, 0.25, -0.5), (-1, -0.2, 0.6))):
        for axis, wanted in enumerate(np.meshgrid(x, y)):
            assert grid[0, :, :, axis].numpy() == pytest.approx(wanted, abs=1e-12)


def test_no_overlap():
    """Side by side, touching, and one above the other; crops that overlap in the same batch are not affected."""
    a = boxes((0, 0, 10, 10, 0), (0, 0, 10, 10, 1), (0, 0, 10, 10, 0), (0, 0, 10, 10, 0))
    b = boxes((11, 0, 10, 10, 0), (10, 0, 5, 10, 0), (0, 30, 10, 10, 1), (9, 9, 10, 10, 0))
    *grids, valid = overlap_grid(*a, *b, 4)
    assert valid.tolist() == [False, False, False, True]
    assert all(torch.all(g[:3] == -2) for g in grids)
    assert not any(sampling(g[:3], (5, 5)).any() for g in grids)
    assert all(g[3].abs().max() <= 1 for g in grids)


@pytest.mark.parametrize("border", [False, True])
def test_sampling_is_grid_sample(border):
    """Any points, inside and outside; grids that are no squares."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(3, 5 * 7, 4, dtype=torch.float64, generator=g)
    grid = torch.rand(3, 6, 2, 2, dtype=torch.float64, generator=g) * 3 - 1.5
    image = x.view(3, 5, 7, 4).permute(0, 3, 1, 2)
    theirs = F.grid_sample(image, grid, padding_mode="border" if border else "zeros", align_corners=False)
    assert relative(sampling(grid, (5, 7), border) @ x, theirs.flatten(2).transpose(1, 2)) < 1e-12


def test_edges_of_a_constant_field():
    """Zero padding halves samples on an edge, quarters them in corners; the corrected option leaves them."""
    edge = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)
    grid = torch.stack([edge.expand(3, 3), edge[:, None].expand(3, 3)], -1)[None]
    ones = torch.ones(1, 36, 1, dtype=torch.float64)
    expected = [0.25, 0.5, 0.25, 0.5, 1, 0.5, 0.25, 0.5, 0.25]
    assert (sampling(grid, (6, 6)) @ ones).flatten().tolist() == pytest.approx(expected, abs=1e-12)
    assert (sampling(grid, (6, 6), border=True) @ ones).flatten().tolist() == pytest.approx([1] * 9, abs=1e-12)


# --- the terms


def sere(*options, **more):
    """Two 64-pixel views (grid 4 x 4) and three 32-pixel ones (2 x 2), relations at 5 x 5 and 3 x 3 points."""
    small = ["objectives.sere.samples=5", "objectives.sere.local_samples=3", "network.overrides.embed_dim=24"]
    return tiny("sere", *small, *options, **more)


def boxed(learner, batch=3, seed=1, **more):
    """Groups with masks, and with crops of 200 x 160 pixels; local view 0 of image 0 overlaps no global one."""
    made = groups(learner, batch, seed=seed, **more)
    g = torch.Generator().manual_seed(seed)
    made[0].mask = torch.rand(2, batch, 4, 4, generator=g) < 0.3
    for group, least in zip(made, (0.6, 0.4), strict=False):
        size = (torch.tensor([200.0, 160]) * (least + 0.3 * torch.rand(*group.box.shape[:2], 2, generator=g))).floor()
        corner = ((torch.tensor([200.0, 160]) - size) * torch.rand(size.shape, generator=g)).floor()
        group.box = torch.cat([corner, size], -1)
        group.flip = torch.rand(size.shape[:2], generator=g) < 0.5
    made[1].box[0, 0] = torch.tensor([0.0, 0, 40, 30])
    made[0].box[:, 0] = torch.tensor([60.0, 50, 120, 100])
    return made


def features(learner, groups):
    """Relation features as published: per view, batch statistics of the group. -> {name: (student's, teacher's)}"""
    found = {}
    for name in ("spatial", "channel"):
        sides = []
        for network, seen in ((learner.student, groups), (learner.teacher, groups[:1])):
            views = []
            for g, group in enumerate(seen):
                mask = group.mask.flatten(0, 1) if network is learner.student and group.mask is not None else None
                raw = vit_tokens(network.backbone, group.x.flatten(0, 1), mask).patch
                part = network.heads[name][g].state_dict(keep_vars=True)
                y = raw
                for at in ("projection.0", "predictor.1"):
                    if at == "predictor.1":
                        if "predictor.0.weight" not in part:
                            break
                        y = y @ part["predictor.0.weight"].t()
                    rows = y.flatten(0, 1)
                    unit = (rows - rows.mean(0)) / (rows.var(0, unbiased=False) + 1e-5).sqrt()
                    y = (unit * part[f"{at}.weight"] + part[f"{at}.bias"]).relu().view_as(raw)
                views += y.unflatten(0, group.x.shape[:2]).unbind()
            sides.append(views)
        found[name] = sides
    return found


def cross_entropy(teacher, student, tau):
    """[B, ..., rows, K] each -> per image the mean over rows of CE(softmax(teacher / tau), softmax(student))"""
    rows = -((teacher / tau).softmax(-1) * student.log_softmax(-1)).sum(-1)
    return rows.flatten(1).mean(1)


def plain_grids(box_a, flip_a, box_b, flip_b, points):
    """Points of the overlap as either crop sees them, one image after the other. -> [B, points, points, 2] twice, and
    whether there is an overlap [B]"""
    seen, valid = ([], []), []
    for *boxes, flip_of_a, flip_of_b in zip(box_a.tolist(), box_b.tolist(), flip_a, flip_b, strict=True):
        left, top = (max(box[i] for box in boxes) for i in (0, 1))
        right, bottom = (min(box[i] + box[2 + i] for box in boxes) for i in (0, 1))
        valid.append(left < right and top < bottom)
        for (x, y, width, height), flip, grids in zip(boxes, (flip_of_a, flip_of_b), seen, strict=True):
            across = (np.linspace(left, right, points) - x) / width
            down = (np.linspace(top, bottom, points) - y) / height
            grid = np.stack(np.meshgrid(1 - across if flip else across, down), -1) * 2 - 1
            grids.append(torch.from_numpy(grid if valid[-1] else np.full_like(grid, -2)))
    return torch.stack(seen[0]), torch.stack(seen[1]), torch.tensor(valid)


def plain(learner, groups, border="zeros"):
    """Relations of all patches, the spatial ones sampled along their keys and then their queries; loops over pairs.
    -> spatial and channel loss of every pair and image [pairs, B], and which overlap [pairs, B]"""
    found, h = features(learner, groups), 2
    where = [(x.box[v], x.flip[v]) for x in groups for v in range(len(x.x))]
    spatial, channel, overlap = [], [], []

    def relations(x, grid):
        side = math.isqrt(x.shape[1])
        y = x.unflatten(-1, (h, -1)).transpose(1, 2)  # [B, H, N, d]
        r = y @ y.transpose(-1, -2) * y.shape[-1] ** -0.5
        for _ in range(2):  # keys, then queries
            rows = r.flatten(1, 2).unflatten(-1, (side, side))
            rows = F.grid_sample(rows, grid, padding_mode=border, align_corners=False)
            r = rows.flatten(2).unflatten(1, (h, -1)).transpose(-1, -2)
        return r

    for t in range(2):
        for v in range(len(where)):
            if v == t:
                continue
            *grids, valid = plain_grids(*where[t], *where[v], 5 if v < 2 else 3)
            z, q = found["spatial"][1][t], found["spatial"][0][v]
            spatial.append(cross_entropy(relations(z, grids[0]), relations(q, grids[1]), 0.5))
            z, q = (x.transpose(1, 2) for x in (found["channel"][1][t], found["channel"][0][v]))
            r_t, r_v = (x @ x.transpose(1, 2) / x.shape[2] for x in (z, q))
            channel.append(cross_entropy(r_t, r_v, 0.1))
            overlap.append(valid)
    return torch.stack(spatial), torch.stack(channel), torch.stack(overlap)


@pytest.mark.parametrize("local", [0, 3, 10])
def test_sere_is_the_plain_one(local):
    """Both losses and every gradient, against relations of all patches; 2, 5 and 12 views give 2, 8 and 22 pairs."""
    learner = sere(f"views.rows.2.count={local or 1}", *(["views.rows.2.count=0"] if not local else []))
    g = boxed(learner) if local else boxed_global(learner)
    _, losses, stats = learner(g, Step())
    spatial, channel, _ = plain(learner, g)
    assert len(spatial) == 2 + 2 * local
    assert relative(losses["sere.spatial"], 0.2 * spatial.mean()) < 1e-12
    assert relative(losses["sere.channel"], 0.5 * channel.mean()) < 1e-12
    learner.weights |= {"dino": 0.0, "ibot": 0.0}
    wanted = 0.2 * spatial.mean() + 0.5 * channel.mean()
    trained = {k.split(".")[0] for k in assert_same_gradients(learner(g, Step())[0], wanted, learner.student)}
    assert trained == {"backbone", "heads"}  # nothing passes the last norm
    found = learner.finish_step(stats, 1.0)
    assert relative(found["sere.channel_loss"], channel.mean()) < 1e-12


def boxed_global(learner):
    made = groups(learner, 3)
    made[0].mask = torch.zeros(2, 3, 4, 4, dtype=torch.bool)
    made[0].box = torch.tensor([[0.0, 0, 150, 120], [30, 20, 160, 130]])[:, None].expand(2, 3, 4).clone()
    return made


def test_pairs_without_overlap():
    """They are a constant, log(points), without gradient; dropped, the others make up an image's mean."""
    learner = sere()
    g = boxed(learner)
    spatial, _, overlap = plain(sere(), g)
    gone = ~overlap
    assert gone[:, 0].sum() == 2  # the two global views against local view 0
    assert torch.allclose(spatial[gone], torch.tensor(math.log(9), dtype=torch.float64), rtol=1e-12, atol=0)
    losses = learner(g, Step())[1]
    assert relative(losses["sere.spatial"], 0.2 * spatial.mean()) < 1e-12
    dropped = sere("objectives.sere.no_overlap=drop")
    wanted = ((spatial * overlap).sum(0) / overlap.sum(0)).mean()
    assert relative(dropped(g, Step())[1]["sere.spatial"], 0.2 * wanted) < 1e-12
    for group in g:  # nothing overlaps at all
        views = group.box.shape[0]
        group.box = torch.tensor([100.0 * v + 1000 * (views == 3) for v in range(views)])[:, None, None].expand(
            views, 3, 4
        )
        group.box = torch.cat([group.box[..., :2], torch.full((views, 3, 2), 50.0)], -1)
    for some, value in ((learner, 0.2 * (2 * math.log(25) + 6 * math.log(9)) / 8), (dropped, 0.0)):
        some.weights |= {"dino": 0.0, "ibot": 0.0}
        some.objectives["sere"].cfg.channel = 0.0
        total = some(g, Step())[0]
        assert float(total.detach()) == pytest.approx(value, rel=1e-12)
        assert not any(v.any() for v in gradients(total, some.student).values() if v is not None)


def test_repeated_borders():
    learner = sere("objectives.sere.border=repeat")
    g = boxed(learner)
    spatial, _, overlap = plain(sere(), g, "border")
    wanted = torch.where(overlap, spatial, math.log(9)).mean()
    found = learner(g, Step())[1]["sere.spatial"]
    assert relative(found, 0.2 * wanted) < 1e-12
    assert relative(found, 0.2 * plain(sere(), g)[0].mean()) > 1e-3


def test_heads():
    """Own ones for either size of views; predictors on the student only; the framework's initialisation; statistics
    of the batch, also in the teacher."""
    learner = Learner(sere().cfg)
    for name in ("spatial", "channel"):
        for student, teacher in zip(learner.student.heads[name], learner.teacher.heads[name], strict=True):
            assert sum(p.numel() for p in student.parameters()) == 24 * 24 + 4 * 24
            assert sum(p.numel() for p in teacher.parameters()) == 2 * 24
            weight = student.predictor[0].weight
            assert 0.15 < weight.abs().max() <= 24**-0.5
            assert torch.equal(teacher.projection[0].weight, student.projection[0].weight)
    with torch.device("meta"):
        full = Learner(load_recipe("sere")).student
    assert sum(p.numel() for p in full.heads["spatial"][0].parameters()) == 148_992
    out = learner.teacher.heads["spatial"][0](3 + 5 * torch.randn(4, 16, 24)).flatten(0, 1)
    assert out.mean() == pytest.approx(0.399, abs=0.03)  # of a rectified normal variable


def test_biases_are_decayed():
    """All but gains of norms, which have one dimension and are no biases; the corrected option exempts biases too."""
    learner = sere()
    for option, decayed in (([], True), (["optim.decay_biases=false"], False)):
        cfg = load_recipe("sere", option)
        names, rest = (
            set(g["names"]) for g in optim.param_groups(learner.student.named_parameters(), cfg.optim.decay_biases)
        )
        biases = {n for n, p in learner.student.named_parameters() if n.endswith(".bias")}
        assert len(biases) > 20
        assert biases <= (names if decayed else rest)
        assert "heads.spatial.0.projection.0.weight" in rest
        assert "heads.spatial.0.predictor.0.weight" in names


@pytest.mark.parametrize("recipe_options", [[], ["objectives.sere.no_overlap=drop"]])
def test_one_image_is_enough(recipe_options):
    learner = sere(*recipe_options)
    total, _, stats = learner(boxed(learner, batch=1), Step())
    assert torch.isfinite(total)
    assert all(torch.isfinite(v).all() for v in gradients(total, learner.student).values() if v is not None)
    assert all(torch.isfinite(v) for v in learner.finish_step(stats, 0.9).values())


def test_one_term_alone():
    for other, name in (("channel", "spatial"), ("spatial", "channel")):
        learner = sere(f"objectives.sere.{other}=0")
        assert [n for n in learner.student.heads if n in ("spatial", "channel")] == [name]
        both, g = sere(), boxed(learner)
        for side in ("student", "teacher"):
            getattr(both, side).load_state_dict(getattr(learner, side).state_dict(), strict=False)
        assert relative(learner(g, Step())[1][f"sere.{name}"], both(g, Step())[1][f"sere.{name}"]) < 1e-12


def test_the_weights_of_the_recipe():
    """L_iBOT (4 - alpha - beta) / 2 + alpha L_s + beta L_ch"""
    cfg = load_recipe("sere")
    weights = {e.name: e.weight for e in cfg.objectives}
    options = cfg.objectives[2].options
    assert weights["dino"] == weights["ibot"] == (4 - options.spatial - options.channel) / 2
    assert (weights["sere"], options.spatial, options.channel) == (1.0, 0.2, 0.5)


def test_runs_under_bf16_autocast():
    near_in_bf16(sere, partial(boxed, batch=4))
