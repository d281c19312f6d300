"""PW-Self: matched patches, the loss, and colours that change patch by patch."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import reference_views as reference
from conftest import golden_cases
from plain_pretrain import (  # noqa: F401
    assert_same_gradients,
    cross_entropy,
    groups,
    near_in_bf16,
    one_thread,
    parts_add_up,
    relative,
    views,
)
from plain_pretrain import tiny as tiny_of
from selfpatch_bench.pretrain.config import load_recipe
from selfpatch_bench.pretrain.data import patch_pixels, pixels
from selfpatch_bench.pretrain.data.group import Group
from selfpatch_bench.pretrain.data.images import open_source
from selfpatch_bench.pretrain.data.loader import batches
from selfpatch_bench.pretrain.data.views import Views, ViewSpec, draw, draw_all, draw_patches, uniforms
from selfpatch_bench.pretrain.geometry import match
from selfpatch_bench.pretrain.objectives import Net, Step
from selfpatch_bench.pretrain.objectives.pwself import Config, Objective
from training import pictures


def boxed(rows):
    """(top, left, height, width, flip) [B, 5] -> box [B, 4] as left, top, width, height, and flip [B]"""
    rows = torch.as_tensor(rows)
    return rows[:, [1, 0, 3, 2]].float(), rows[:, 4].bool()


def pairs(a, b, patches_a, patches_b):
    """Of one pair of crops: the two lists of tokens."""
    i, j, valid = match(*boxed([a]), (patches_a,) * 2, *boxed([b]), (patches_b,) * 2)
    return i[valid].tolist(), j[valid].tolist()


def plain_match(a, b, patches_a, patches_b):
    """methods.md 4.3 with Python's own numbers, numpy's linspace, and lists for grids."""
    low, high = (max(a[0], b[0]), max(a[1], b[1])), (min(a[0] + a[2], b[0] + b[2]), min(a[1] + a[3], b[1] + b[3]))
    if low[0] >= high[0] or low[1] >= high[1]:
        return [0], [0]
    found = []
    for (top, left, height, width, flip), p in ((a, patches_a), (b, patches_b)):
        rows = round(p * ((low[0] - top) / height)), round(p * ((high[0] - low[0]) / height))
        columns = round(p * ((low[1] - left) / width)), round(p * ((high[1] - low[1]) / width))
        grid = np.arange(1, p * p + 1).reshape(p, p)[rows[0] : rows[0] + rows[1]]
        if flip:
            grid = grid[:, p - sum(columns) : p - columns[0]][:, ::-1]
        else:
            grid = grid[:, columns[0] : columns[0] + columns[1]]
        found.append(grid)
    for axis in (0, 1):
        m = min(g.shape[axis] for g in found)
        found = [g.take(np.floor(np.linspace(0, g.shape[axis] - 1, m)).astype(int), axis) for g in found]
    return [0, *found[0].flatten().tolist()], [0, *found[1].flatten().tolist()]


# --- matching


@pytest.mark.parametrize("path", golden_cases("pwself_matching*.json"))
def test_recorded_matches(path):
    """Exactly those of the official code, one by one and all of one size at once."""
    cases = json.loads(Path(path).read_text())
    cases = cases["cases"] if isinstance(cases, dict) else cases
    assert len(cases) >= 8
    by_size = {}
    for c in cases:
        size = c["patches_a"], c["patches_b"]
        assert pairs(c["a"], c["b"], *size) == (c["match_a"], c["match_b"])
        by_size.setdefault(size, []).append(c)
    for (p, q), some in by_size.items():
        i, j, valid = match(*boxed([c["a"] for c in some]), (p, p), *boxed([c["b"] for c in some]), (q, q))
        assert i.shape == (len(some), 1 + min(p, q) ** 2)
        for row, c in enumerate(some):
            assert i[row, valid[row]].tolist() == c["match_a"]
            assert j[row, valid[row]].tolist() == c["match_b"]


def test_match_of_the_specification():
    a, b = (0, 0, 256, 256, 0), (64, 64, 128, 128, 0)
    teacher, student = pairs(a, b, 14, 6)
    assert teacher == [0] + [1 + r * 14 + c for r in (4, 5, 6, 7, 8, 10) for c in (4, 5, 6, 7, 8, 10)]
    assert teacher[1:8] == [61, 62, 63, 64, 65, 67, 75]
    assert student == list(range(37))
    assert pairs(a, (64, 64, 128, 128, 1), 14, 6)[1][1:8] == [6, 5, 4, 3, 2, 1, 12]


def random_boxes(rng, count):
    size = rng.integers(20, 257, (count, 2))
    corner = (rng.random((count, 2)) * (257 - size)).astype(int)
    return np.concatenate([corner, size, rng.integers(0, 2, (count, 1))], 1)


@pytest.mark.parametrize(("p", "q"), [(14, 14), (14, 6), (28, 12)])
def test_many_random_boxes(p, q):
    """10^4 pairs of crops in all: those of a list-by-list version, of equal lengths, and no token twice."""
    rng = np.random.default_rng(p + q)
    a, b = random_boxes(rng, 3400), random_boxes(rng, 3400)
    i, j, valid = match(*boxed(a), (p, p), *boxed(b), (q, q))
    assert valid[:, 0].all()
    assert int(i[valid].min()) == int(j[valid].min()) == 0
    for row in range(len(a)):
        mine = i[row, valid[row]].tolist(), j[row, valid[row]].tolist()
        assert mine == plain_match(a[row].tolist(), b[row].tolist(), p, q), (a[row], b[row])
        assert len(set(mine[0])) == len(set(mine[1])) == len(mine[0])
    assert (valid.sum(1) == 1).any()  # no overlap


@pytest.mark.parametrize(("patches", "width", "left"), [(28, 56, 27), (28, 112, 58), (7, 100, 50), (37, 74, 3)])
def test_over_run_of_a_flipped_crop(patches, width, left):
    """Columns before the intersection and in it, both rounded up, are one too many: a slice that begins at -1, and so
    is empty, where the crop is flipped; else it ends at the edge."""
    assert round(patches * (left / width)) + round(patches * ((width - left) / width)) == patches + 1
    b = (0, left, 56, 200, 0)
    assert pairs((0, 0, 56, width, 1), b, patches, 6) == plain_match((0, 0, 56, width, 1), b, patches, 6) == ([0], [0])
    found = pairs((0, 0, 56, width, 0), b, patches, 6)
    assert found == plain_match((0, 0, 56, width, 0), b, patches, 6)
    assert len(found[0]) > 1


@pytest.mark.parametrize("flips", [(0, 0), (1, 1), (0, 1)])
def test_identical_views(flips):
    """The same box and size: every token is its own partner; a flip mirrors the rows."""
    box = (13, 40, 100, 170)
    i, j = pairs((*box, flips[0]), (*box, flips[1]), 14, 14)
    grid = np.arange(1, 197).reshape(14, 14)
    turned = [grid[:, ::-1] if f else grid for f in flips]
    assert (i, j) == tuple([0, *t.flatten().tolist()] for t in turned)


def test_mean_number_of_matches():
    """Two global views 131, global and local 29 at patch 16, in 256-pixel images, as measured of the official code."""
    rows = [ViewSpec(1, 224, (0.4, 1.0)), ViewSpec(1, 96, (0.05, 0.4))]
    drawn = [
        [draw(row, 256, 256, u) for u in uniforms(2000, 3, k)] for k, row in ((0, rows[0]), (1, rows[0]), (2, rows[1]))
    ]
    crops = [(torch.tensor([v.box for v in d]).float(), torch.tensor([v.flip for v in d])) for d in drawn]
    means = [
        float((match(*crops[0], (14, 14), *crops[k], (p, p))[2].sum(1) - 1).double().mean())
        for k, p in ((1, 14), (2, 6))
    ]
    assert means == [pytest.approx(131, abs=3), pytest.approx(29, abs=0.5)]  # standard errors 0.7 and 0.15


# --- the loss


@pytest.mark.parametrize("path", golden_cases("pwself_loss*.npz"))
def test_recorded_loss(path):
    """Loss, centre and gradients by the outputs of a step of the official code; 1e-5."""
    z = {k: torch.from_numpy(v) for k, v in np.load(path).items()}
    box, flip = boxed(z["boxes"])
    rows, width, outputs = z["teacher"].shape
    images, local = rows // 2, len(box) - 2
    sides = [round((n - 1) ** 0.5) for n in (width, z["student_local"].shape[1])]
    net = Net(8, "token", True, (2, local), tuple((s, s) for s in sides))
    objective = Objective(Config(outputs=outputs, teacher_temperature=0.07, teacher_temperature_epochs=2), net)
    objective.centre.copy_(z["center_before"][0])
    made = [
        Group(torch.zeros(len(b), images, 1, 1, 1), b[:, None].expand(-1, images, 4), f[:, None].expand(-1, images))
        for b, f in ((box[:2], flip[:2]), (box[2:], flip[2:]))
    ]
    student = [z[f"student_{k}"].requires_grad_() for k in ("global", "local")]
    outs = [{"head": s.unflatten(0, (-1, images))} for s in student]
    teacher = [{"head": z["teacher"].unflatten(0, (2, images))}, None]
    losses, stats = objective(outs, teacher, made, Step(epoch=int(z["epoch"])))
    losses["tokens"].backward()
    assert relative(losses["tokens"], z["loss"]) < 1e-5
    for s, k in zip(student, ("global", "local"), strict=True):
        assert relative(s.grad, z[f"grad_student_{k}"]) < 1e-5
    objective.update(stats)
    assert relative(objective.centre, z["center_after"][0]) < 1e-5


def tiny(*options, **more):
    return tiny_of("pwself", *options, **more)


def placed(learner, batch=3, seed=1, **more):
    """Groups with a box and flip of its own for every view and image; one local view overlaps no global one."""
    made, rng = groups(learner, batch, seed=seed, **more), np.random.default_rng(seed)
    for group in made:
        box, flip = boxed(random_boxes(rng, group.box.shape[0] * batch))
        group.box, group.flip = box.view_as(group.box).clone(), flip.view_as(group.flip)
    made[1].box[0, 0] = torch.tensor([0.0, 0, 20, 20])
    made[0].box[:, 0] = torch.tensor([100.0, 100, 120, 100])
    return made


def plain(learner, groups, row=lambda i: i):
    """The loss as published: pairs of views, images, and their lists of tokens, one after the other."""
    with torch.no_grad():
        teacher = list(learner.teacher(groups[:1])[0]["head"])
    student, centre = views(learner.student(groups), "head"), learner.objectives["pwself"].centre
    place = [
        (torch.cat([g.box[v][:, [1, 0, 3, 2]], g.flip[v][:, None]], 1).int().tolist(), g)
        for g in groups
        for v in range(len(g.x))
    ]
    side = [round((s.shape[1] - 1) ** 0.5) for s in student]
    terms = []
    for t in range(2):
        for v in range(len(student)):
            if v == t:
                continue
            for b in range(student[v].shape[0]):
                i, j = plain_match(place[t][0][b], place[v][0][b], side[t], side[v])
                target = ((teacher[t][b, i] - centre[row(torch.tensor(i))]) / 0.04).softmax(-1)
                terms.append(cross_entropy(target, student[v][b, j] / 0.1))
    return torch.stack(terms)


ROWS = {"position": lambda i: i, "kind": lambda i: (i > 0).long(), "prototype": torch.zeros_like}


@pytest.mark.parametrize("centre", ROWS)
def test_pwself_is_the_plain_one(centre):
    """Loss and every gradient, boxes of every image's own, for the official centre and the corrected ones."""
    learner = tiny(f"objectives.pwself.centre={centre}")
    own = learner.objectives["pwself"].centre
    assert own.shape == ({"position": 17, "kind": 2, "prototype": 1}[centre], 20)
    own.copy_(0.1 * torch.randn(own.shape, generator=torch.Generator().manual_seed(0)))
    g = placed(learner)
    total, losses, _ = learner(g, Step())
    terms = plain(learner, g, ROWS[centre])
    assert len(terms) == 8 * 3
    assert relative(total, terms.mean()) < 1e-12
    assert_same_gradients(total, terms.mean(), learner.student)
    assert torch.equal(losses["pwself.tokens"], total.detach())


@pytest.mark.parametrize("centre", ROWS)
def test_centre_by_hand(centre):
    """Two steps: means over the batch and both global views, at every position or of those that share a centre."""
    learner = tiny(f"objectives.pwself.centre={centre}")
    row = ROWS[centre](torch.arange(17))
    expected = torch.zeros_like(learner.objectives["pwself"].centre)
    for seed in (1, 2):
        g = placed(learner, seed=seed)
        out = learner.teacher(g[:1])[0]["head"]
        learner.finish_step(learner(g, Step())[2], 1.0)
        for k in range(len(expected)):
            expected[k] = 0.9 * expected[k] + 0.1 * out[:, :, row == k].flatten(0, 2).mean(0)
        assert relative(learner.objectives["pwself"].centre, expected) < 1e-12


@pytest.mark.parametrize(("local", "terms"), [(0, 2), (8, 18)])
def test_number_of_pairs(local, terms):
    learner = tiny(f"views.rows.2.count={local}")
    g = groups(learner, 2)
    for group in g:  # all views are of the same place
        group.box = torch.tensor([10.0, 20, 100, 90]).expand(group.box.shape)
    found = plain(learner, g)
    assert len(found) == terms * 2
    assert relative(learner(g, Step())[0], found.mean()) < 1e-12


def test_parts_of_a_batch_add_up_and_the_log():
    whole = tiny()
    losses, logged = parts_add_up(whole, tiny(), placed(whole, batch=6))
    assert relative(logged["pwself.entropy"] + logged["pwself.kl"], losses["pwself.tokens"]) < 1e-12
    assert 0.01 < logged["pwself.entropy"] < np.log(20) - 0.01


@pytest.mark.parametrize("batch", [1, 3])
def test_runs_under_bf16_autocast(batch):
    near_in_bf16(tiny, partial(placed, batch=batch))


def test_small_pictures():
    """CIFAR-10's size at patch 4: 32-pixel pictures, 8 x 8 patches, local views of 4 x 4."""
    sizes = [
        "views.unit=patch",
        "views.pre_resize=null",
        "views.rows.0.size=32",
        "views.rows.1.size=32",
        "views.rows.2.size=16",
    ]
    learner = tiny("network.backbone=vit_tiny_patch4", *sizes)
    assert learner.patch == 4
    assert learner.objectives["pwself"].centre.shape == (65, 20)
    drawn = draw_all(learner.cfg.views, 32, 32, 0, 0, 1, patch=4)
    assert [len(v.patches.gray) for v in drawn] == [64, 64, 16, 16, 16]
    g = placed(learner)
    assert relative(learner(g, Step())[0], plain(learner, g).mean()) < 1e-12


# --- views

ROW = ViewSpec(1, 96, (0.1, 0.4), blur_p=0.5, solarize_p=0.3, solarize_threshold=100)


def test_the_two_recipes_differ_in_the_unit_only(caplog):
    """The repository's is called pwself; its name of older versions still is one, with a note."""
    ours, theirs = (load_recipe(r) for r in ("pwself_patchwise", "pwself"))
    assert load_recipe("pwself_repo") == theirs
    assert "recipe pwself_repo is called pwself" in caplog.text
    assert (ours.views.unit, theirs.views.unit) == ("patch", "image")
    for cfg in (ours, theirs):
        assert (cfg.views.share, cfg.views.pre_resize) == ("batch", 256)
    ours.views.unit, ours.recipe = theirs.views.unit, theirs.recipe
    assert ours == theirs


@pytest.mark.parametrize("unit", ["image", "patch"])
@pytest.mark.parametrize("share", ["batch", "image"])
def test_boxes_of_a_batch(tmp_path, share, unit):
    """Shared: one box, flip and colours for all images of a step, others in the next, the same for every process. Or
    every image's own."""
    rows = [ViewSpec(2, 32, jitter_p=1.0), ViewSpec(2, 16, (0.1, 0.4))]
    table = Views(rows, pre_resize=48, share=share, unit=unit)
    source = open_source(pictures(tmp_path))
    steps = list(batches(source, table, seed=1, batch=8, patch=8))
    for step in steps:
        for group in step.groups:
            alike = (group.box == group.box[:, :1]).all() and (group.flip == group.flip[:, :1]).all()
            assert bool(alike) == (share == "batch")
    assert not torch.equal(steps[0].groups[0].box[:, 0], steps[1].groups[0].box[:, 0])
    part = next(batches(source, table, seed=1, batch=8, patch=8, rank=1, world=2))
    assert all(torch.equal(a.x, b.x[:, 4:]) for a, b in zip(part.groups, steps[0].groups, strict=True))
    key = (1, 0) if share == "batch" else (1, 0, int(steps[0].index[3]))
    view = draw_all(table, 48, 40, *key, patch=8)[2]
    image = pixels.pre_resize(source.read(int(steps[0].index[3])), 48)
    assert np.array_equal(steps[0].groups[1].x[0, 3].numpy(), pixels.apply(view, image))


def test_a_patch_is_drawn_as_a_view_is():
    """Patch n of view v: the colours that `draw` makes of the stream (key, v, n); boxes and flips are the image's."""
    table = Views([ROW, ROW], unit="patch")
    whole = draw_all(Views([ROW, ROW]), 100, 120, 5, 6, 7)
    for v, view in enumerate(draw_all(table, 100, 120, 5, 6, 7, patch=16)):
        assert (view.box, view.flip) == (whole[v].box, whole[v].flip)
        assert (view.jitter, view.gray, view.blur, view.solarize) == ((), False, 0.0, None)
        numbers = uniforms(36, 5, 6, 7, v)
        for n, alone in enumerate(draw(ROW, 100, 120, u) for u in numbers):
            assert jitter_of(view.patches, n) == alone.jitter
            assert view.patches.gray[n] == alone.gray
            assert view.patches.blur[n] == pytest.approx(alone.blur, rel=1e-12)
            assert view.patches.solarize[n] == (256 if alone.solarize is None else alone.solarize)
    assert len({jitter_of(view.patches, n) for n in range(36)}) > 20


def jitter_of(colours, n):
    names = ("brightness", "contrast", "saturation", "hue")
    return tuple((names[k], colours.factors[n, k]) for k in colours.order[n] if k >= 0)


def test_patches_are_recoloured_as_pillow_does_one_by_one():
    """The official pipeline on every patch alone: mean and whole-step bounds as for whole views (test_views.py)."""
    errors = []
    for seed in range(4):
        image = reference.picture(seed, 96, 96)
        colours = draw_patches(ROW, 16, uniforms(36, 9, seed))
        ours = patch_pixels.recolour(image, colours)
        assert ours.shape == image.shape
        for n in range(36):
            at = slice(n // 6 * 16, n // 6 * 16 + 16), slice(n % 6 * 16, n % 6 * 16 + 16)
            x = Image.fromarray(image[at])
            for operation, factor in jitter_of(colours, n):
                x = reference._JITTER[operation](x, factor)
            x = x.convert("L").convert("RGB") if colours.gray[n] else x
            if colours.blur[n]:
                x = x.filter(reference.ImageFilter.GaussianBlur(float(colours.blur[n])))
            if colours.solarize[n] < 256:
                x = reference.ImageOps.solarize(x, int(colours.solarize[n]))
            errors.append(np.abs(ours[at].astype(int) - np.asarray(x)).mean())
    assert np.max(errors) <= 2.4
    assert np.mean(errors) <= 0.6


def test_single_steps_are_pillows():
    """Pointwise steps within one level everywhere, hue and blur 1.2 on average; factors at the ends of their ranges."""
    patches = np.stack([reference.picture(s, 16, 16) for s in range(40)])
    rng = np.random.default_rng(0)
    for name, low, high, bound in (
        ("brightness", 0.6, 1.4, 1),
        ("contrast", 0.6, 1.4, 1),
        ("saturation", 0.8, 1.2, 1),
        ("hue", -0.1, 0.1, None),
    ):
        factors = rng.uniform(low, high, 40)
        factors[:3] = low, high, (low + high) / 2
        ours = patch_pixels._JITTER[name](patches, factors[:, None, None, None])
        theirs = [reference._JITTER[name](Image.fromarray(x), f) for x, f in zip(patches, factors, strict=True)]
        delta = np.abs(ours.astype(int) - np.stack([np.asarray(x) for x in theirs]))
        assert delta.max() <= bound if bound else delta.mean() <= 1.2, name
    radii = np.linspace(0.1, 2.5, 40)
    ours = patch_pixels.blur(patches, radii[:, None, None, None])
    theirs = [
        Image.fromarray(x).filter(reference.ImageFilter.GaussianBlur(r))
        for x, r in zip(patches, radii.tolist(), strict=True)
    ]
    assert np.abs(ours.astype(int) - np.stack([np.asarray(x) for x in theirs])).mean(axis=(1, 2, 3)).max() <= 1.2


def test_patches_are_independent():
    """Pixels of one patch change that patch of the view only; without any colours drawn, the view is the plain crop."""
    image = reference.picture(0, 96, 96)
    colours = draw_patches(ViewSpec(1, 96, blur_p=1.0, solarize_p=0.5), 16, uniforms(36, 1))
    before = patch_pixels.recolour(image, colours)
    other = image.copy()
    other[16:32, 48:64] = 255 - other[16:32, 48:64]
    changed = (patch_pixels.recolour(other, colours) != before).any(-1)
    assert changed[16:32, 48:64].any()
    changed[16:32, 48:64] = False
    assert not changed.any()
    off = ViewSpec(1, 96, jitter_p=0, gray_p=0, blur_p=0)
    (plain,), (patched,) = (draw_all(Views([off], unit=u), 96, 96, 3, patch=16) for u in ("image", "patch"))
    assert np.array_equal(pixels.apply(plain, image), pixels.apply(patched, image))


def test_a_strength_of_zero_leaves_an_operation_out():
    image = reference.picture(1, 32, 32)
    colours = draw_patches(ViewSpec(1, 32, jitter=(0, 0, 0, 0), jitter_p=1, gray_p=0, blur_p=0), 16, uniforms(4, 1))
    assert np.array_equal(patch_pixels.recolour(image, colours), image)
