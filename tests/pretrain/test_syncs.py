"""Optimiser steps of every recipe on fake CUDA tensors, all but the backward pass: devices that do not match, and waits
for the device."""

import json
from collections import Counter

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from selfpatch_bench.pretrain import geometry, optim
from selfpatch_bench.pretrain.config import load_recipe
from selfpatch_bench.pretrain.data import group as grouping
from selfpatch_bench.pretrain.data.group import Group
from selfpatch_bench.pretrain.distributed import Ranks
from selfpatch_bench.pretrain.model import learner
from selfpatch_bench.pretrain.step import Trainer

CUDA = torch.device("cuda", 0)
SMALL = {"outputs": 32, "hidden": 16, "bottleneck": 8, "queue": 16}
aten = torch.ops.aten


class Waits(TorchDispatchMode):
    """Counts operations for which the host waits for the device: reading a number, finding out how many elements of a
    mask are set, copies from one to the other; and, apart, copies to the host that it does not wait for. Numbers that
    are read are 1 or 0.1."""

    def __init__(self):
        super().__init__()
        self.found = Counter()
        self.pinned: list[torch.Tensor] = []

    def pin(self, tensor: torch.Tensor) -> torch.Tensor:
        self.pinned.append(tensor)
        return tensor

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        there = [x.device.type for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        name = func.overloadpacket
        if name is aten._local_scalar_dense:
            self.found["a number is read"] += "cuda" in there
            return 0.1 if args[0].dtype.is_floating_point else 1
        if name in (aten.nonzero, aten.masked_select) and "cuda" in there:
            self.found["elements are counted"] += 1
        if name is aten.index and any(i is not None and i.dtype == torch.bool for i in args[1]):
            self.found["elements are counted"] += 1
        if name is aten._fused_sgd_:  # torch has no fake form of it
            return None
        out = func(*args, **kwargs)
        if name in (aten._to_copy, aten.copy_):
            source = args[1] if name is aten.copy_ else args[0]
            if {source.device.type, out.device.type} == {"cpu", "cuda"}:
                # Torch makes memory pinned where such a copy goes; where it comes from must have been, see `pin`.
                later = kwargs.get("non_blocking") and (
                    out.device.type == "cpu" or any(source is x for x in self.pinned)
                )
                self.found["a copy, not waited for" if later else "a copy"] += 1
        return out


class Loss:
    """torch's backward pass asks for the device itself, so that gradients are given instead."""

    def __init__(self, made: Trainer):
        self.made = made

    def backward(self) -> None:
        for _, p in self.made.named:
            p.grad = torch.empty_like(p)


class Stream:
    """As nothing runs, everything has arrived."""

    def record_event(self):
        return self

    def synchronize(self):
        pass


class Scaler(torch.amp.GradScaler):
    def __init__(self, made: Trainer):
        super().__init__("cpu", enabled=made.scaler.is_enabled())  # without a GPU, one for GPUs switches itself off
        self.made = made

    def scale(self, outputs):
        scaled = super().scale(outputs)
        return Loss(self.made) if outputs.requires_grad else scaled


def trainer(recipe: str, precision: str) -> Trainer:
    swin = recipe == "moby"
    size = {"embed_dim": 24, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 2]}
    size = size if swin else {"embed_dim": 24, "depth": 2, "num_heads": 2}
    given = [f"network.overrides={json.dumps(size)}", "loop.batch=2", "loop.steps=100", "schedule.warmup_epochs=0"]
    cfg = load_recipe(recipe, [*given, f"loop.precision={precision}", "loop.device=cpu"])
    for entry in cfg.objectives:
        for name in SMALL.keys() & vars(entry.options).keys():
            setattr(entry.options, name, SMALL[name])
    return Trainer(cfg, 10, Ranks("cpu"))


def moved(made: Trainer) -> Trainer:
    """To the fake device, as if it had been made there."""
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    made.learner._apply(lambda x: torch.empty(x.shape, dtype=x.dtype, device=CUDA))
    torch.__future__.set_overwrite_module_params_on_conversion(False)
    made.device, made.named, made.late = CUDA, made.learner.trained(), True
    made.statistics = [b for m in made.learner.modules() if isinstance(m, _BatchNorm) for b in m.buffers()]
    made.learner.ema = optim.Ema(made.learner.student, made.learner.teacher)
    made.optimiser = optim.build_optimiser(made.named, made.cfg.optim)
    made.scaler = Scaler(made)
    return made


def views(made: Trainer) -> list[Group]:
    """As they come from the loader, on the device already."""
    groups = []
    for numbers in made.cfg.views.groups():
        size, count = made.cfg.views.specs()[numbers[0]].size, len(numbers)
        side = size // made.learner.patch
        box, flip = torch.ones(count, 2, 4, device=CUDA), torch.zeros(count, 2, dtype=torch.bool, device=CUDA)
        group = Group(torch.zeros(count, 2, 3, size, size, dtype=torch.uint8, device=CUDA), box, flip)
        if made.cfg.views.mask.kind != "none":
            group.mask = torch.zeros(count, 2, side, side, dtype=torch.bool, device=CUDA)
            group.hidden = np.full((count, 2), 3)
        groups.append(group)
    return groups


@pytest.fixture
def fresh():
    """Tables that are made once must not be left behind as fake ones."""
    made_once = (geometry.neighbours, grouping._scale_shift)
    yield [f.cache_clear() for f in made_once]
    for f in made_once:
        f.cache_clear()


# Copies that are not waited for: of the message, and, drawn on the host, of the number of a patch of each view.
RECIPES = {"dino": 1, "selfpatch": 1, "ibot": 1, "moby": 1, "moby_selfpatch": 2, "pwself": 1, "sere": 1}


@pytest.mark.parametrize(("recipe", "precision"), [*((r, "bf16") for r in RECIPES), ("dino", "fp16")])
def test_a_step_does_not_wait(recipe, precision, fresh, monkeypatch):
    """One message leaves for the host in each step, whether loss and gradients are finite and a signal has come, and
    is read during the next. The first step also makes tables that later ones have."""
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream())
    # Autocast for CUDA is off where there is none, and would not cast the images that meet the teacher's weights.
    monkeypatch.setattr(learner, "cast_weights", lambda network, dtype: {})
    made = trainer(recipe, precision)
    with FakeTensorMode(allow_non_fake_inputs=True):
        moved(made)
        for _ in range(2):
            with Waits() as waits, monkeypatch.context() as patched:
                patched.setattr(torch.Tensor, "pin_memory", lambda x, waits=waits: waits.pin(x))
                made.advance(views(made))
        assert made.flag == 1
    assert +waits.found == +Counter({"a copy, not waited for": RECIPES[recipe]})
