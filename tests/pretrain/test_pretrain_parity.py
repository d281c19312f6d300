"""One step and a short run of the official DINO and SelfPatch, through our networks, objectives, optimiser and EMA.

The recorded weights, views, outputs, losses, centres and gradients are float32, so 1e-5 relative per tensor; the
gradient of a class-attention key's bias is zero in exact arithmetic, so there both are rounding and only small.
"""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from conftest import golden_cases
from plain_pretrain import one_thread, relative  # noqa: F401
from selfpatch_bench.benchmarks import load
from selfpatch_bench.benchmarks.commands.pretrain import read_weights
from selfpatch_bench.pretrain import optim
from selfpatch_bench.pretrain.common.errors import UserError
from selfpatch_bench.pretrain.common.positions import resize_positions
from selfpatch_bench.pretrain.config import load_recipe
from selfpatch_bench.pretrain.data.group import Group
from selfpatch_bench.pretrain.model.backbone import tokens
from selfpatch_bench.pretrain.model.initial import load_initial
from selfpatch_bench.pretrain.objectives import Step
from selfpatch_bench.pretrain.step import Learner

RECIPES = {"selfpatch": "selfpatch", "dino": "dino"}
STEPS = [c for c in golden_cases("*_step*.npz") if c.values[0].name.split("_")[0] in RECIPES]
RUNS = [c for c in golden_cases("*_trajectory*.json") if c.values[0].name.split("_")[0] in RECIPES]


def our_name(key, recipe):
    """Official parameter name -> ours."""
    if recipe == "dino" and key.startswith("backbone.norm."):
        return key.replace("backbone.", "readout.")
    if key.startswith("ca_head."):
        return key.replace("ca_head.", "readout.")
    return f"heads.{key}" if re.match(r"(\w+_)?head\.", key) else key


class Case:
    """A recorded step as a learner with its weights and centres."""

    def __init__(self, path, facts=None):
        self.recipe = recipe = RECIPES[path.name.split("_")[0]]
        self.z = z = np.load(path)
        if facts is None:
            sibling = path.with_name(path.name.replace("_step", "_trajectory")).with_suffix(".json")
            facts = json.loads(sibling.read_text()) if sibling.exists() else {}
        depth = 1 + max(int(m[1]) for k in z.files if (m := re.match(r"student\.backbone\.blocks\.(\d+)", k)))
        width = z["student.backbone.pos_embed"].shape[-1]
        size = {"embed_dim": width, "depth": depth, "num_heads": facts.get("heads", 3)}
        images = [torch.from_numpy(z[k]).float() for k in sorted(k for k in z.files if re.fullmatch(r"image\d+", k))]
        self.groups = [images[:2], images[2:]]
        patch = z["student.backbone.patch_embed.proj.weight"].shape[-1]
        options = [
            f"network.backbone=vit_small_patch{patch}",
            f"network.overrides={json.dumps(size)}",
            "network.drop_path=0",
            f"views.rows.0.size={images[0].shape[-1]}",
            f"views.rows.1.size={images[1].shape[-1]}",
            f"views.rows.2.size={images[2].shape[-1]}",
            f"views.rows.2.count={len(images) - 2}",
        ]
        heads = {"dino": "c_head" if recipe == "selfpatch" else "head", "selfpatch": "p_head"}
        names = ["dino", "selfpatch"] if recipe == "selfpatch" else ["dino"]
        for name in names:
            mlp, last = (z[f"student.{heads[name]}.{part}"].shape for part in ("mlp.2.weight", "last_layer.weight_v"))
            values = {"outputs": last[0], "bottleneck": last[1], "hidden": mlp[0], "head": heads[name]}
            values |= {"teacher_temperature": 0.07, "teacher_temperature_epochs": 2}
            values["norm_last_layer"] = f"grad.{heads[name]}.last_layer.weight_g" not in z.files
            options += [f"objectives.{name}.{k}={v}" for k, v in values.items()]
        if "k" in facts:
            options.append(f"objectives.selfpatch.k={facts['k']}")
        self.learner = Learner(load_recipe(recipe, options))
        for side in ("student", "teacher"):
            given = {our_name(k[8:], recipe): torch.from_numpy(z[k]) for k in z.files if k.startswith(f"{side}.")}
            getattr(self.learner, side).load_state_dict(given)
        for name, key in zip(names, ("center_before", "patch_center_before"), strict=False):
            centre = self.learner.objectives[name].centre
            centre.copy_(torch.from_numpy(z[key]).view_as(centre))

    def views(self, shift=0):
        """The recorded views, rolled by some pixels along their width."""
        return [Group(torch.stack([torch.roll(x, shift, -1) for x in some]), None, None) for some in self.groups]

    def tensor(self, key):
        return torch.from_numpy(np.asarray(self.z[key]))


@pytest.fixture(params=STEPS)
def case(request):
    return Case(request.param)


def test_losses_centres_and_gradients(case):
    learner, z = case.learner, case.z
    total, losses, stats = learner(case.views(), Step(epoch=1))
    total.backward()
    assert relative(total, case.tensor("loss")) < 1e-5
    if "loss_cls" in z.files:
        assert relative(losses["dino.image"], case.tensor("loss_cls")) < 1e-5
        assert relative(losses["selfpatch.patch"], case.tensor("loss_patch")) < 1e-5
    recorded = {our_name(k[5:], case.recipe): case.tensor(k) for k in z.files if k.startswith("grad.")}
    ours = {n: p.grad for n, p in learner.student.named_parameters() if p.grad is not None}
    assert ours.keys() == recorded.keys()
    for name, grad in recorded.items():
        if grad.abs().max() < 1e-7:
            assert name.endswith("attn.k.bias")
            assert ours[name].abs().max() < 1e-7
        else:
            assert relative(ours[name], grad) < 1e-5, name
    learner.finish_step(stats, 1.0)
    for name, key in (("dino", "center_after"), ("selfpatch", "patch_center_after")):
        if key in z.files:
            assert relative(learner.objectives[name].centre.flatten(), case.tensor(key).flatten()) < 1e-5


@torch.no_grad()
def test_outputs(case):
    """Whatever the file recorded of backbone and readout, for both networks."""
    learner, z, checked = case.learner, case.z, set()
    for side in ("student", "teacher"):
        net = getattr(learner, side)
        for g, kind in enumerate(("global", "local")):
            x = case.groups[g][0]
            toks = tokens(net.backbone, x)
            if f"{side}_backbone_{kind}0" in z.files:
                checked.add(f"{side}_backbone_{kind}0")
                assert relative(toks.patch, case.tensor(f"{side}_backbone_{kind}0")) < 1e-5
            if f"{side}_head_{kind}0" in z.files:  # readout: image vector, then patches
                checked.add(f"{side}_head_{kind}0")
                how = learner.teacher.specs["p_head"].input
                patches = net.readout.norm(toks.patch) if side == "student" else net.aggregate(toks, how)
                out = torch.cat([net.image(toks)[:, None], patches], 1)
                assert relative(out, case.tensor(f"{side}_head_{kind}0")) < 1e-5
    for key in ("student_out", "teacher_out"):
        if key in z.files:
            checked.add(key)
            net = getattr(learner, key.split("_")[0])
            groups = case.views() if key.startswith("student") else case.views()[:1]
            assert relative(torch.cat([o["head"].flatten(0, 1) for o in net(groups)]), case.tensor(key)) < 1e-5
    assert checked


@torch.no_grad()
def test_positions_at_another_size(case):
    """The first view cut to its upper rows, in patches another grid than the stored square."""
    found = [k for k in case.z.files if re.fullmatch(r"student_(backbone|cls)_\d+x\d+", k)]
    assert found
    for key in found:
        h, w = map(int, key.rsplit("_", 1)[1].split("x"))
        net = case.learner.student
        toks = tokens(net.backbone, case.groups[0][0][..., :h, :w])
        ours = toks.patch if "backbone" in key else net.image(toks)
        assert relative(ours, case.tensor(key)) < 1e-5
        other = replace(net.cfg, positions="size")
        plain = tokens(net.backbone, case.groups[0][0][..., :h, :w], rule=other.positions)
        assert relative(plain.patch if "backbone" in key else net.image(plain), case.tensor(key)) > 1e-4


@pytest.mark.parametrize("path", RUNS)
def test_trajectory(path):
    """Every step's learning rate, decay, momentum, loss and sums of absolute weights; 1e-4."""
    run = json.loads(path.read_text())
    step_file = path.with_name(path.name.replace("_trajectory", "_step")).with_suffix(".npz")
    if not step_file.exists():
        pytest.skip(f"{step_file} is absent: it holds the weights that the run starts from")
    case, steps = Case(step_file, run), run["steps"]
    learner = case.learner
    peak = max(range(len(steps)), key=lambda i: steps[i]["lr"])
    cfg = load_recipe(case.recipe, [f"schedule.lr={run.get('base_lr', 5e-4)}", f"schedule.lr_batch={run['batch']}"])
    cfg.schedule.warmup_epochs = (peak + 1) / run["steps_per_epoch"]
    table = optim.build_schedules(
        cfg.schedule, run["batch"], run["epochs"] * run["steps_per_epoch"], run["steps_per_epoch"]
    )
    optimiser = optim.build_optimiser(learner.student.named_parameters(), cfg.optim)
    for wanted in steps:
        t, epoch = wanted["it"], wanted["epoch"]
        assert t // run["steps_per_epoch"] == epoch
        for ours, name in ((table.lr, "lr"), (table.weight_decay, "weight_decay"), (table.ema, "ema")):
            assert ours[t] == pytest.approx(wanted[name], rel=1e-12, abs=1e-15)
        total, losses, stats = learner(case.views(t), Step(t, epoch))
        total.backward()
        optim.clip(learner.student.parameters(), cfg.optim.clip, cfg.optim.clip_mode)
        optim.freeze(learner.student.named_parameters(), cfg.optim.freeze, cfg.optim.freeze_epochs, epoch)
        optim.set_schedule(optimiser, table.lr[t], table.weight_decay[t])
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        learner.finish_step(stats, table.ema[t])
        found = {"loss": total, "loss_cls": losses.get("dino.image"), "loss_patch": losses.get("selfpatch.patch")}
        for side in ("student", "teacher"):
            parameters = getattr(learner, side).parameters()
            found[f"{side}_abs_sum"] = sum(p.detach().double().abs().sum() for p in parameters)
        for name in found.keys() & wanted.keys():
            assert found[name].item() == pytest.approx(wanted[name], rel=1e-4), (t, name)


# --- starting from a checkpoint


def start(recipe, path, *options):
    small = ["objectives.dino.outputs=16", "objectives.dino.hidden=16"]
    small += ["objectives.selfpatch.outputs=16", "objectives.selfpatch.hidden=16"] * (recipe == "selfpatch")
    learner = Learner(load_recipe(recipe, [*small, *options]))
    return learner, load_initial(learner, path, read_weights=read_weights)


TINY = "network.overrides={embed_dim: 48, depth: 3, num_heads: 3}"


@pytest.mark.shared
@torch.no_grad()
def test_start_from_an_official_checkpoint(need):
    """Student and teacher then compute what the loader's encoder computes from that file."""
    path = need("golden/selfpatch_checkpoint.pth")
    learner, said = start("selfpatch", path, TINY)
    assert "not taken" not in said
    encoder = load(path, heads=3)
    x = torch.randn(2, 3, 224, 224)
    for net in (learner.student.eval(), learner.teacher):
        toks = tokens(net.backbone, x)
        assert relative(toks.patch.transpose(1, 2).unflatten(2, toks.hw), encoder(x).patches[0]) < 1e-5
        assert relative(net.image(toks), encoder(x).image) < 1e-5


@pytest.mark.shared
@torch.no_grad()
def test_start_from_another_readout_and_size(need):
    """A class token that SelfPatch has no use for is left out, its own readout starts afresh, positions are resized."""
    path = need("checkpoints/real/vit_tiny_patch16_224_augreg.pth")
    sizes = ["views.rows.0.size=112", "views.rows.1.size=112", "views.rows.2.size=48"]
    learner, said = start("selfpatch", path, "network.backbone=vit_tiny_patch16", *sizes)
    assert "not taken: backbone.cls_token" in said
    assert "initialised afresh: readout.cls_blocks" in said
    assert "heads are not in the file: 3 assumed" in said
    encoder = load(path, heads=3, mean=0.5, std=0.5)
    backbone = learner.teacher.backbone
    expected = resize_positions(encoder.vit.pos_embed[:, 1:], (7, 7), encoder.card.pos_resize)
    assert torch.equal(backbone.pos_embed, expected)
    assert torch.equal(backbone.blocks[11].mlp.fc2.weight, encoder.vit.blocks[11].mlp.fc2.weight)
    assert torch.equal(learner.student.readout.norm.weight, encoder.vit.norm.weight)


@pytest.mark.shared
def test_start_from_what_does_not_fit(need):
    path = need("golden/selfpatch_checkpoint.pth")
    for options, said in (
        (["network.overrides={embed_dim: 48, depth: 2, num_heads: 3}"], "depth 3 instead of 2"),
        (["network.backbone=vit_tiny_patch8", TINY], "patch 16 instead of 8"),
        ([], "dim 48 instead of 384"),
    ):
        with pytest.raises(UserError, match=said):
            start("selfpatch", path, *options)
    with pytest.raises(UserError, match="no position for the class token"):
        start("dino", path, TINY)
