"""The official steps, and every recipe's, on a GPU: float32 against the recorded values and the CPU, bf16 and fp16 by
the direction of each gradient.

float32 without TF32: losses 1e-5, gradients 1e-4 of each tensor's largest entry (a GPU adds in another order; on a CPU
both are 1e-5). Low precision: losses 2 %, cosine of each gradient of more than 100 numbers above 0.9 (fp16 0.95).
"""

import pytest
import torch
import torch.nn.functional as F
from on_device import EVERY, gradients, tiny
from on_device import device as device
from on_device import exact as exact
from test_pretrain_parity import STEPS, Case, our_name

from plain_pretrain import relative
from selfpatch_bench.pretrain.objectives import Step
from training import one_thread as one_thread

MANY = {"spread": 0.1, "batch": 16}  # batch norm of few images makes much of a rounding
# Factor of the loss, as a scaler would have it, and the least cosine.
LOW = {torch.bfloat16: (1.0, 0.9), torch.float16: (2.0**8, 0.95)}


@pytest.mark.parametrize("path", STEPS)
def test_the_official_step(path, device, exact):
    case = Case(path)
    learner = case.learner.to(device)
    total, _, stats = learner([g._each(lambda t: t.to(device)) for g in views(case)], Step(epoch=1))
    total.backward()
    assert relative(total.cpu(), case.tensor("loss")) < 1e-5
    ours = {n: p.grad.cpu() for n, p in learner.student.named_parameters() if p.grad is not None}
    for key in (k for k in case.z.files if k.startswith("grad.")):
        wanted, found = case.tensor(key), ours[our_name(key[5:], case.recipe)]
        if wanted.abs().max() < 1e-7:  # zero in exact arithmetic
            assert found.abs().max() < 1e-6, key
        else:
            assert relative(found, wanted) < 1e-4, key
    learner.finish_step(stats, 1.0)
    for name, key in (("dino", "center_after"), ("selfpatch", "patch_center_after")):
        if key in case.z.files:
            assert relative(learner.objectives[name].centre.cpu().flatten(), case.tensor(key).flatten()) < 1e-5


def views(case):
    """The recorded views, as groups with boxes, which `to` needs."""
    made = []
    for g in case.views():
        box, flip = torch.zeros(*g.x.shape[:2], 4), torch.zeros(g.x.shape[:2], dtype=torch.bool)
        made.append(type(g)(g.x, box, flip))
    return made


@pytest.fixture(scope="module")
def on_cpu():
    """recipe -> (losses, gradients) of a float32 step on the CPU, which the other tests hold to the official code."""
    known = {}

    def look(recipe: str, **size):
        key = recipe, *size
        if key not in known:
            learner, groups = tiny(recipe, "cpu", **size)
            total, losses, _ = learner(groups, Step())
            total.backward()
            known[key] = {k: float(v) for k, v in losses.items()}, gradients(learner)
        return known[key]

    return look


@pytest.mark.parametrize("recipe", EVERY)
def test_float32_is_the_cpus(recipe, device, exact, on_cpu):
    learner, groups = tiny(recipe, device)
    total, losses, stats = learner(groups, Step())
    total.backward()
    wanted, wanted_gradients = on_cpu(recipe)
    assert {k: float(v) for k, v in losses.items()} == pytest.approx(wanted, rel=1e-5)
    found = gradients(learner)
    for name, grad in wanted_gradients.items():
        assert relative(found[name], grad) < 1e-4, name
    assert all(torch.isfinite(torch.as_tensor(v)).all() for v in learner.finish_step(stats, 0.9).values())


@pytest.mark.parametrize("dtype", LOW, ids=["bf16", "fp16"])
@pytest.mark.parametrize("recipe", EVERY)
def test_low_precision_points_the_same_way(recipe, dtype, device, on_cpu):
    learner, groups = tiny(recipe, device, **MANY)
    with torch.autocast(device.type, dtype):
        total, losses, _ = learner(groups, Step())
    scale, least = LOW[dtype]
    (total * scale).backward()
    wanted, wanted_gradients = on_cpu(recipe, **MANY)
    assert {k: float(v) for k, v in losses.items()} == pytest.approx(wanted, rel=0.02)
    for name, grad in wanted_gradients.items():
        if grad.numel() > 100:
            own = dict(learner.trained())[name].grad.float().cpu()
            assert F.cosine_similarity(own.flatten(), grad.flatten(), 0) > least, name
