"""One optimiser step of every mm recipe on a GPU: its own pipeline, losses, mixed precision and optimiser, small."""

import math

import pytest
import torch
from on_device import device as device

from mm_building import CARDS, CONFIGS, HAVE, configured, mm, model_of, optimiser
from selfpatch_bench.benchmarks.synthetic.small_sets import make_ade20k, make_coco

if HAVE:
    from test_mm_build import CLASSES, NAMES, SMALL_RESNET, tiny
else:
    NAMES = []

pytestmark = mm


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")
    return {
        "coco": make_coco(folder / "coco", (4, 3), (64, 96)),
        "ade20k": make_ade20k(folder / "ade20k", (4, 3), (64, 96)),
    }


@pytest.mark.parametrize("name", NAMES)
def test_one_step(name, device, sets):
    from mmengine.registry import DefaultScope
    from mmengine.runner import Runner

    from selfpatch_bench.benchmarks.mm import recipe

    family = recipe.read(CONFIGS / f"{name}.py").family
    cfg, _ = configured(
        name, *tiny(name), f"classes={CLASSES[name]}", data=sets[name.partition("_")[0]], world=1, device=str(device),
        card=SMALL_RESNET if family == "resnet" else CARDS[family],
    )  # fmt: skip
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        batch = next(iter(Runner.build_dataloader(cfg.train_dataloader, seed=0)))
        model = model_of(cfg)
        model.init_weights()
        model = model.to(device)
        wrapper = optimiser(cfg, model)
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        # A scaler leaves steps out until its scale fits.
        for _ in range(8):
            losses = model.train().train_step(batch, wrapper)
            changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
            if changed:
                break
    losses = {k: float(torch.as_tensor(v).detach().sum()) for k, v in losses.items() if "loss" in k}
    assert losses
    assert all(map(math.isfinite, losses.values())), losses
    assert any(n.startswith("backbone") for n in changed)
    assert any(not n.startswith("backbone") for n in changed)
