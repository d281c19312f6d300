"""Parameter groups, clipping, frozen layers, moving average."""

import pytest
import torch
from torch import nn

from plain_pretrain import groups, one_thread, relative, tiny  # noqa: F401
from selfpatch_bench.pretrain import optim
from selfpatch_bench.pretrain.objectives import Step
from selfpatch_bench.pretrain.options import Optim


def with_gradients(spread=3.0):
    learner = tiny("selfpatch")
    learner(groups(learner), Step())[0].backward()
    named = list(learner.student.named_parameters())
    with torch.no_grad():
        for i, (_, p) in enumerate(named):
            if p.grad is not None:  # norms from far below to far above the limit
                p.grad.mul_(spread * 2.0 ** (i % 7 - 3) / p.grad.norm())
    return learner, named


def test_what_is_decayed():
    learner = tiny("selfpatch", "objectives.dino.norm_last_layer=false")
    decayed, rest = optim.param_groups(learner.student.named_parameters())
    names = {n for n, p in learner.student.named_parameters() if p.requires_grad}
    assert set(decayed["names"]) | set(rest["names"]) == names
    assert len(decayed["names"]) + len(rest["names"]) == len(names)
    # class token, positions and the trainable gain are decayed; the frozen gain is in neither group
    assert {"readout.cls_token", "backbone.pos_embed", "heads.c_head.last_layer.weight_g"} <= set(decayed["names"])
    assert "heads.p_head.last_layer.weight_g" not in names
    assert all(n.endswith(".bias") or "norm" in n for n in rest["names"])
    assert not any(n.endswith(".bias") or "norm" in n for n in decayed["names"])


def test_decayed_biases():
    """SERE: every bias, but no norm gain."""
    decayed, rest = optim.param_groups(tiny("dino").student.named_parameters(), decay_biases=True)
    assert any(n.endswith(".bias") for n in decayed["names"])
    assert rest["names"]
    assert all("norm" in n and n.endswith(".weight") for n in rest["names"])


def test_one_step_of_adamw_written_out():
    _, named = with_gradients()
    before = {n: p.detach().clone() for n, p in named}
    grads = {n: p.grad.clone() for n, p in named if p.grad is not None}
    optimiser = optim.build_optimiser(named, Optim())
    optim.set_schedule(optimiser, lr=1e-3, weight_decay=0.3)
    optimiser.step()
    for name, p in named:
        if name not in grads:
            assert torch.equal(p, before[name])
            continue
        decay = 0.3 if p.ndim > 1 and not name.endswith(".bias") else 0.0
        # first step: both moments, corrected for their bias, are the gradient and its square
        expected = before[name] * (1 - 1e-3 * decay) - 1e-3 * grads[name] / (grads[name].abs() + 1e-8)
        assert relative(p, expected) < 1e-12, name


def test_clipping_per_tensor():
    learner, named = with_gradients()
    expected = {}
    for name, p in named:
        if p.grad is not None:
            norm = float(p.grad.norm(2))
            expected[name] = p.grad.clone() * min(1.0, 3.0 / (norm + 1e-6))
    norms = optim.clip(learner.student.parameters(), 3.0)
    assert len(norms) == len(expected)
    assert float(norms.min()) < 1 < 20 < float(norms.max())
    for name, p in named:
        if p.grad is not None:
            assert relative(p.grad, expected[name]) < 1e-12, name
            assert float(p.grad.norm()) <= 3.0


def test_clipping_all_together():
    learner, named = with_gradients()
    whole = torch.cat([p.grad.flatten() for _, p in named if p.grad is not None])
    norm = optim.clip(learner.student.parameters(), 5.0, "global")
    clipped = torch.cat([p.grad.flatten() for _, p in named if p.grad is not None])
    assert relative(norm, whole.norm().reshape(1)) < 1e-12
    assert relative(clipped, whole * 5.0 / (whole.norm() + 1e-6)) < 1e-12


@pytest.mark.parametrize("mode", ["per_tensor", "global"])
def test_no_clipping(mode):
    learner, named = with_gradients()
    before = [p.grad.clone() for _, p in named if p.grad is not None]
    optim.clip(learner.student.parameters(), None, mode)
    assert all(torch.equal(a, p.grad) for a, p in zip(before, (p for _, p in named if p.grad is not None), strict=True))


def test_frozen_last_layers():
    """Neither updated nor decayed in the first epoch, both heads; trained from the second on."""
    learner, named = with_gradients()
    optimiser = optim.build_optimiser(named, Optim())
    optim.set_schedule(optimiser, 1e-3, 0.1)
    start = {n: p.detach().clone() for n, p in named}
    optim.freeze(named, ["last_layer"], 1, epoch=0)
    optimiser.step()
    moved = {n for n, p in named if not torch.equal(p, start[n])}
    trainable = {n for n, p in named if p.requires_grad}
    assert trainable - moved == {f"heads.{h}.last_layer.weight_v" for h in ("c_head", "p_head")}
    learner(groups(learner), Step())[0].backward()
    optim.freeze(named, ["last_layer"], 1, epoch=1)
    optimiser.step()
    assert {n for n, p in named if not torch.equal(p, start[n])} == trainable


class Side(nn.Module):
    def __init__(self, **sizes):
        super().__init__()
        for name, size in sizes.items():
            setattr(self, name, nn.Parameter(torch.randn(size, dtype=torch.float64)))
        self.register_buffer("mean", torch.randn(3))


def test_moving_average_goes_by_name():
    """In another order, with parameters that only one of them has; buffers keep their own values."""
    student, teacher = Side(a=4, predictor=2, b=(3, 2)), Side(b=(3, 2), own=5, a=4)
    before = {n: t.clone() for n, t in teacher.state_dict().items()}
    optim.Ema(student, teacher).update(0.9)
    for name in "ab":
        expected = 0.9 * before[name] + 0.1 * student.state_dict()[name]
        assert relative(teacher.state_dict()[name], expected) < 1e-12
    assert torch.equal(teacher.own, before["own"])
    assert torch.equal(teacher.mean, before["mean"])


def test_moving_average_with_momentum_one_changes_nothing():
    student, teacher = Side(a=4), Side(a=4)
    before = teacher.a.detach().clone()
    optim.Ema(student, teacher).update(1.0)
    assert torch.equal(teacher.a, before)


def test_moving_average_of_different_shapes_is_refused():
    with pytest.raises(KeyError, match="shapes"):
        optim.Ema(Side(a=4), Side(a=5))
