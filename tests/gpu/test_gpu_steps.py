"""Steps of the trainer on a GPU: every recipe with and without compiled blocks, the scaler, a resumed run."""

import contextlib
import io
import math

import pytest
import torch
from figures_pretrain import configuration, synthetic
from on_device import EVERY, asked, quick_compile
from on_device import device as device
from on_device import exact as exact

from plain_pretrain import relative
from selfpatch_bench.pretrain import train
from selfpatch_bench.pretrain.distributed import Ranks
from selfpatch_bench.pretrain.step import Trainer
from training import one_thread as one_thread
from training import tensors


def trainer(recipe: str, device, *more: str, precision: str = "float32") -> Trainer:
    options = asked(device=str(device), precision=precision)
    return Trainer(configuration(recipe, options, "schedule.lr=0.01", *more), 1000, Ranks(str(device)))


def steps(made: Trainer, count: int) -> list[float]:
    """Losses of the next steps, each on pictures of its own."""
    found = []
    for _ in range(count):
        groups = synthetic(made.cfg, 4, torch.device("cpu"))
        shift = made.step
        for g in groups:
            g.x = torch.roll(g.x, shift, -1)
        found.append(float(made.advance([g.to(made.device) for g in groups]).numbers["loss"]))
    return found


@pytest.mark.parametrize("recipe", EVERY)
def test_three_steps_with_and_without_compiling(recipe, device, exact):
    """The recipe's own stochastic depth is off: compiled, it is drawn otherwise."""
    eager = steps(trainer(recipe, device, "network.drop_path=0"), 3)
    assert all(map(math.isfinite, eager))
    with quick_compile(device):
        compiled = steps(trainer(recipe, device, "network.drop_path=0", "loop.compile=true"), 3)
    assert compiled[0] == pytest.approx(eager[0], rel=1e-4)
    assert compiled == pytest.approx(eager, rel=1e-2)


@pytest.mark.parametrize("recipe", EVERY)
def test_three_steps_as_it_comes(recipe, device):
    """Precision and stochastic depth are the recipe's own."""
    made = trainer(recipe, device, precision="auto")
    before = {n: p.detach().clone() for n, p in made.named}
    assert all(map(math.isfinite, steps(made, 3)))
    assert any(not torch.equal(p, before[n]) for n, p in made.named)


@pytest.mark.parametrize("recipe", ["dino", "selfpatch"])
def test_the_scaler_at_its_default(recipe, device):
    """From 65536 it finds its scale within a few steps, and the run learns in fp16 as in float32."""
    made = trainer(recipe, device, "network.drop_path=0", precision="fp16")
    losses = steps(made, 12)
    assert all(map(math.isfinite, losses))
    assert 1 <= made.scaler.get_scale() <= 2**17
    assert made.step == 12
    wanted = steps(trainer(recipe, device, "network.drop_path=0"), 1)
    assert losses[0] == pytest.approx(wanted[0], rel=0.02)
    assert all(torch.isfinite(p).all() for _, p in made.named)


@pytest.mark.parametrize("recipe", ["selfpatch", "moby"])
def test_a_resumed_run_goes_on(recipe, device, exact):
    """To the last bit on a CPU, and where the order of additions is fixed (loop.deterministic); else nearly."""
    fixed = getattr(train, "reproducible", None)
    strict = device.type == "cpu" or fixed is not None
    with fixed(True) if fixed else contextlib.nullcontext():
        whole = trainer(recipe, device)
        losses = steps(whole, 4)
        first = trainer(recipe, device)
        assert steps(first, 2) == pytest.approx(losses[:2], rel=0 if strict else 1e-4)
        file = io.BytesIO()
        torch.save(first.state(), file)
        file.seek(0)
        second = trainer(recipe, device)
        second.load(torch.load(file, weights_only=True, map_location="cpu"))
        again = steps(second, 2)
    assert again == pytest.approx(losses[2:], rel=0 if strict else 1e-4)
    if strict:
        a, b = tensors(second.state()), tensors(whole.state())
        assert all(torch.equal(a[k], b[k]) for k in b)
    else:
        a, b = dict(second.learner.teacher.named_parameters()), dict(whole.learner.teacher.named_parameters())
        assert all(relative(a[k].cpu(), v.cpu()) < 1e-3 for k, v in b.items() if v.abs().max() > 1e-6)
