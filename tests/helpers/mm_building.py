"""What the tests of the mm recipes share: narrow networks, and recipes built for them."""

import functools
import importlib.util

import pytest

from conftest import REPO
from selfpatch_bench.benchmarks.mm import ops, recipe
from selfpatch_bench.benchmarks.mm.training import Training
from selfpatch_bench.benchmarks.synthetic.small_sets import ADE_CLASSES, COCO_CLASSES
from selfpatch_bench.pretrain.common.card import IMAGENET_MEAN, IMAGENET_STD, Card

HAVE = all(importlib.util.find_spec(name) for name in ops.PACKAGES)
mm = pytest.mark.skipif(not HAVE, reason="the extra mm is not installed")
CONFIGS = REPO / "mm_configs"

STATS = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
CARDS = {
    # depth 12 and 6 heads as in ViT-S, narrow; 8 heads divide the width too, as they do ViT-S's
    "vit": Card("vit", patch=16, dim=48, depth=12, heads=6, class_token=True, final_norm=True, **STATS),
    "swin": Card(
        "swin", patch=4, window=7, dim=16, depths=(2, 2, 2, 2), heads=(1, 2, 4, 8), class_token=False, patch_norm=True,
        absolute_pos=False, sizes="padded", norm_eps=1e-5, **STATS,
    ),
    "resnet": Card(
        "resnet", block="bottleneck, stride on the 3x3", blocks=(1, 1, 1, 1), stem_channels=64,
        widths=(256, 512, 1024, 2048), bn_eps=1e-5, **STATS,
    ),
}  # fmt: skip


@functools.cache
def build():
    """The module `build`, with mm imported."""
    ops.install()
    from selfpatch_bench.benchmarks.mm import build

    return build


def training(name, *overrides, export="", data="/data", **rest):
    """The training of a recipe of ours; with `classes=` on a drawn set."""
    if any(text.startswith("classes=") for text in overrides):
        rest["classes"] = list(COCO_CLASSES if name.startswith("coco") else ADE_CLASSES)
    return Training(str(CONFIGS / f"{name}.py"), str(export), str(data), "/out", list(overrides), **rest)


def configured(name, *overrides, world=8, device="cuda", card=None, **rest):
    """(config, effective) of a recipe for `card`, else for the narrow one of its family; on 8 GPUs."""
    card = card or CARDS[recipe.read(CONFIGS / f"{name}.py").family]
    return build().config(training(name, *overrides, **rest), card, world, device)


def model_of(cfg):
    """The model that the Runner would build."""
    from mmengine.registry import MODELS, DefaultScope

    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return MODELS.build(cfg.model)


@functools.cache
def built(name):
    """(config, model) of a recipe for its narrow network with the protocol's own heads, on CPU."""
    cfg, _ = configured(name, device="cpu")
    return cfg, model_of(cfg)


def optimiser(cfg, model):
    """mmengine's wrapper of the optimiser."""
    from mmengine.optim import build_optim_wrapper

    return build_optim_wrapper(model, cfg.optim_wrapper)
