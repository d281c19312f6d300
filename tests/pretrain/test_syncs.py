"""Optimiser steps of every recipe on fake CUDA tensors, all but the backward pass: devices that do not match, and waits
for the device."""

import json
from collections import Counter

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from selfpatch_bench.pretrain import geometry, optim
from selfpatch_bench.pretrain.config import load_recipe
from selfpatch_bench.pretrain.data import group as grouping
from selfpatch_bench.pretrain.data.group import Group
from selfpatch_bench.pretrain.distributed import Ranks
from selfpatch_bench.pretrain.step import Trainer

CUDA = torch.device("cuda", 0)
SMALL = {"outputs": 32, "hidden": 16, "bottleneck": 8, "queue": 16}
aten = torch.ops.aten


class Waits(TorchDispatchMode):
    """Counts operations for which the host waits for the device: reading a number, finding out how many elements of a
    mask are set, copies from one to the other. Numbers that are read are 1 or 0.1."""

    def __init__(self):
        super().__init__()
        self.found = Counter()

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
        out = func(*args, **kwargs)
        if name in (aten._to_copy, aten.copy_):
            source = args[1] if name is aten.copy_ else args[0]
            if {source.device.type, out.device.type} == {"cpu", "cuda"}:
                self.found["a copy"] += 1
        return out


class Loss:
    """torch's backward pass asks for the device itself, so that gradients are given instead."""

    def __init__(self, made: Trainer):
        self.made = made

    def backward(self) -> None:
        for _, p in self.made.named:
            p.grad = torch.empty_like(p)


def trainer(recipe: str) -> Trainer:
    swin = recipe == "moby"
    size = {"embed_dim": 24, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 2]}
    size = size if swin else {"embed_dim": 24, "depth": 2, "num_heads": 2}
    given = [f"network.overrides={json.dumps(size)}", "loop.batch=2", "loop.steps=100", "schedule.warmup_epochs=0"]
    cfg = load_recipe(recipe, [*given, "loop.precision=bf16", "loop.device=cpu"])
    for entry in cfg.objectives:
        for name in SMALL.keys() & vars(entry.options).keys():
            setattr(entry.options, name, SMALL[name])
    return Trainer(cfg, 10, Ranks("cpu"))


def moved(made: Trainer) -> Trainer:
    """To the fake device, as if it had been made there."""
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    made.learner._apply(lambda x: torch.empty(x.shape, dtype=x.dtype, device=CUDA))
    torch.__future__.set_overwrite_module_params_on_conversion(False)
    made.device, made.named = CUDA, made.learner.trained()
    made.learner.ema = optim.Ema(made.learner.student, made.learner.teacher)
    made.optimiser = optim.build_optimiser(made.named, made.cfg.optim)
    made.scaler.scale = lambda loss: Loss(made)
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


# Beside the one message: copies to the device. A random patch of each view is drawn on the host.
RECIPES = {"dino": 0, "selfpatch": 0, "ibot": 0, "moby": 0, "moby_selfpatch": 1, "pwself": 0, "sere": 0}


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_step_waits_once(recipe, fresh):
    """For one message of three numbers, whether loss and gradients are finite and a signal has come. The first step
    also makes tables that later ones have."""
    made = trainer(recipe)
    with FakeTensorMode(allow_non_fake_inputs=True):
        moved(made)
        for _ in range(2):
            with Waits() as waits:
                made.advance(views(made))
    assert +waits.found == +Counter({"a number is read": 3, "a copy": RECIPES[recipe]})
