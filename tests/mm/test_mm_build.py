"""Building a recipe: overrides, what the machine and the card decide, and one real step of every recipe."""

import contextlib
import itertools
import json
import math
import os
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mm_building import CARDS, CONFIGS, STATS, build, configured, mm, model_of, optimiser
from selfpatch_bench.benchmarks.mm import recipe
from selfpatch_bench.benchmarks.mm.training import Training
from selfpatch_bench.benchmarks.synthetic.small_sets import ADE_CLASSES, COCO_CLASSES, make_ade20k, make_coco
from selfpatch_bench.pretrain.common.card import Card
from selfpatch_bench.pretrain.common.errors import UserError

NAMES = sorted(p.stem for p in CONFIGS.glob("[a-z]*.py"))
pytestmark = mm
every = pytest.mark.parametrize("name", NAMES)


# --- overrides -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "nearest"),
    [
        ("model.neck.out_chanels=64", "model.neck.out_channels"),
        ("model.backbone.drop_pth=0", "model.backbone.drop_path"),
        ("train_dataloader.dataset.pipeline.9.prob=1", "train_dataloader.dataset.pipeline."),
        ("model.backbone.depth.x=3", "model.backbone"),
        ("train_pipeline.0=3", "pipeline"),  # a name of the file's own, which nothing reads
        ("test_dataloader.batch_size=2", "dataloader.batch_size"),
    ],
)
def test_an_unknown_key_names_the_nearest(override, nearest):
    with pytest.raises(UserError, match=r"has no .*; did you mean") as caught:
        configured("coco_maskrcnn_1x", override)
    assert nearest in str(caught.value).partition("did you mean")[2]


@pytest.mark.parametrize(
    ("override", "instead"),
    [
        ("optim_wrapper.optimizer.lr=1", "lr="),
        ("train_dataloader.batch_size=4", "per_gpu="),
        ("optim_wrapper.type=AmpOptimWrapper", "amp="),
        ("model.backbone.blocks=[1,2,3,4]", "blocks="),
        ("val_evaluator.limit=3", "--limit"),
        ("train_dataloader.dataset.data_root=/elsewhere", "--data"),
        ("val_dataloader.dataset.ann_file=annotations/other.json", "--data"),
        ("train_dataloader.dataset.data_prefix.img=other/", "--data"),
        ("train_dataloader.dataset.indices=7", "--limit"),
        ("model.backbone.card.heads=8", "--card"),
        ("model.backbone.card.mean=[0,0,0]", "--card"),
        ("model.backbone.card.anything=1", "--card"),
        ("model.data_preprocessor.mean=[0,0,0]", "--card mean="),
        ("model.data_preprocessor.std.0=1", "--card std="),
        ("model.roi_head.bbox_head.num_classes=7", "classes="),
        ("train_cfg.max_epochs=24", "epochs="),
        ("train_cfg.max_iters=24", "iterations="),
        ("param_scheduler.0.end=10", "warmup="),
        ("param_scheduler.1.by_epoch=false", "another recipe"),
        ("model.backbone.type=TimmResNet", "another recipe"),
        # the same by replacing what holds it
        ("train_cfg={max_epochs: 2}", "no value train_cfg"),
        ("param_scheduler.1={type: ConstantLR, factor: 1.0}", "follows from others"),
        ("optim_wrapper.optimizer={type: SGD}", "lr="),
        ("train_dataloader.dataset={type: CocoDataset}", "another recipe"),
        ("model.data_preprocessor={type: DetDataPreprocessor}", "--card"),
        ("model.backbone={drop_path: 0.1}", "another recipe"),
        ("model.roi_head.mask_head={type: FCNMaskHead}", "classes="),
        ("val_cfg.type=ValLoop", "changes nothing: there is no validation"),
        ("train_cfg.val_interval=3", "changes nothing: there is no validation"),
        ("default_hooks.checkpoint.type=Other", "changes nothing: checkpoints"),
        ("env_cfg.dist_cfg.backend=gloo", "changes nothing: the processes"),
        ("default_hooks.checkpoint={type: CheckpointHook, interval: 2}", None),  # holds nothing of the kind
    ],
)
def test_a_derived_key_names_its_source(override, instead):
    """Also one below or above it: nothing goes past what the record says of heads, mean, batch, data and schedule."""
    with pytest.raises(UserError, match=instead) if instead else contextlib.nullcontext():
        configured("coco_maskrcnn_1x", override)


@pytest.mark.parametrize(
    ("name", "texts", "words"),
    [
        ("ade20k_semfpn_40k", ("mode=slide", "crop_size=[64,64]", "stride=[42,42]"), None),
        ("ade20k_upernet_160k", ("={mode: slide, crop_size: [64,64], stride: [64,64]}",), None),
        ("ade20k_semfpn_40k", ("mode=slide",), r"needs model\.test_cfg\.crop_size=\[H,W\] and"),
        ("ade20k_semfpn_40k", ("crop_size=[64,64]",), "do nothing for whole pictures"),
        ("ade20k_semfpn_40k", ("mode=slide", "crop_size=[64,64]", "stride=[42,65]"), "leaves gaps"),
        ("ade20k_semfpn_40k", ("mode=slide", "crop_size=64", "stride=[42,42]"), "crop_size=64: two whole numbers"),
        ("ade20k_semfpn_40k", ("mode=slide", "crop_size=[64,64]", "stride=[0,42]"), "stride=.*two whole numbers"),
        ("ade20k_semfpn_40k", ("mode=slid",), "whole or slide"),
        ("coco_maskrcnn_1x", ("crop_size=[64,64]",), "has no model.test_cfg.crop_size"),
    ],
)
def test_sliding_windows(name, texts, words):
    """Keys that the config with `whole` leaves out can be given where they are of use."""
    overrides = [f"model.test_cfg{'' if text.startswith('=') else '.'}{text}" for text in texts]
    if words:
        with pytest.raises(UserError, match=words):
            configured(name, *overrides)
        return
    cfg, effective = configured(name, *overrides)
    assert cfg.model.test_cfg.mode == "slide"
    assert effective["config"]["model"]["test_cfg"]["crop_size"] == [64, 64]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("clip_grad.max_norm=1", None),
        ("clip_grad.max_norm=0", "above 0"),
        ("clip_grad.norm_type=2", "needs .*max_norm"),
        ("clip_grad={max_norm: -1}", "above 0"),
        ("optimizer.eps=1e-6", None),
        ("optimizer.betas.0=0.8", r"give all of optim_wrapper\.optimizer\.betas, like .*\[0\.9, 0\.999\]"),
        ("clip_gard.max_norm=1", "did you mean optim_wrapper.clip_grad"),
    ],
)
def test_values_of_the_optimiser_that_configs_leave_out(text, words):
    if words:
        with pytest.raises(UserError, match=words):
            configured("coco_maskrcnn_1x", f"optim_wrapper.{text}")
    else:
        wrapper = configured("coco_maskrcnn_1x", f"optim_wrapper.{text}")[0].optim_wrapper
        assert wrapper.clip_grad == {"max_norm": 1} or wrapper.optimizer.eps == 1e-6


@pytest.mark.parametrize(
    "override",
    ["model.neck.out_channels=wide", "model.neck.out_channels=1.5", "model.backbone.drop_path=[1]", "model.neck=3"],
)
def test_a_value_of_another_kind_is_refused(override):
    with pytest.raises(UserError, match="another kind"):
        configured("coco_maskrcnn_1x", override)


def test_overrides_arrive_and_are_recorded():
    texts = (
        "model.neck.out_channels=64",
        "model.backbone.drop_path=0",
        "train_dataloader.dataset.pipeline.3.transforms.0.0.scales=[[64, 96], [96, 96]]",
        "val_dataloader.dataset.pipeline.1.scale=[96,64]",
        "optim_wrapper.clip_grad={max_norm: 1.0}",
        "lr=1e-4",
        "with_cp=true",
    )
    cfg, effective = configured("coco_maskrcnn_1x", *texts)
    assert (cfg.model.neck.out_channels, cfg.model.backbone.drop_path, cfg.model.backbone.with_cp) == (64, 0.0, True)
    # mm tells a list of sizes from a size by the type
    assert cfg.train_dataloader.dataset.pipeline[3].transforms[0][0].scales == [(64, 96), (96, 96)]
    assert cfg.val_dataloader.dataset.pipeline[1].scale == cfg.test_dataloader.dataset.pipeline[1].scale == (96, 64)
    assert cfg.optim_wrapper.clip_grad == {"max_norm": 1.0}
    assert cfg.optim_wrapper.optimizer.lr == effective["lr"] == 1e-4
    assert effective["overrides"]["model.neck.out_channels"] == 64
    assert effective["overrides"]["lr"] == 1e-4
    assert effective["config"]["model"]["neck"]["out_channels"] == 64


def test_a_shorter_schedule():
    cfg, _ = configured("ade20k_semfpn_40k", "iterations=100", "warmup=10")
    warm, poly = cfg.param_scheduler
    assert (cfg.train_cfg.max_iters, cfg.train_cfg.val_interval, cfg.default_hooks.checkpoint.interval) == (100,) * 3
    assert (warm.end, poly.end) == (11, 101)
    cfg, _ = configured("ade20k_semfpn_40k", "iterations=100", "warmup=10", world=1)  # 8 micro-batches a step
    warm, poly = cfg.param_scheduler
    assert (cfg.train_cfg.max_iters, warm.end, poly.end) == (800, 81, 801)
    cfg, _ = configured("coco_maskrcnn_1x", "epochs=24", "warmup=0")
    (drops,) = cfg.param_scheduler
    assert (cfg.train_cfg.max_epochs, drops.milestones, drops.end) == (24, [16, 22], 24)
    with pytest.raises(UserError, match="give epochs="):
        configured("coco_maskrcnn_1x", "iterations=5")
    with pytest.raises(UserError, match="no warm-up"):
        configured("ade20k_semfpn_r50_40k", "warmup=5")


def test_a_warmup_longer_than_the_run():
    """It is shortened to the run, and recorded; one that the user gave is refused."""
    for world, k in ((8, 1), (1, 8)):  # micro-batches for a step
        cfg, effective = configured("ade20k_semfpn_40k", "iterations=100", world=world)
        assert (cfg.param_scheduler[0].end, effective["warmup"]) == (100 * k + 1, 100)
        assert effective["config"]["param_scheduler"][0]["end"] == 101
    cfg, effective = configured("ade20k_semfpn_40k", "iterations=1500")
    assert (cfg.param_scheduler[0].end, effective.get("warmup")) == (1501, None)
    with pytest.raises(UserError, match="warmup=101: longer than the run; give at most warmup=100"):
        configured("ade20k_semfpn_40k", "iterations=100", "warmup=101")
    for texts, complaint in (((), None), (("warmup=6",), "at most warmup=5")):  # 5 steps of 8 pictures
        cfg, effective = configured("coco_maskrcnn_1x", *texts, world=1)
        runner = SimpleNamespace(train_loop=SimpleNamespace(max_iters=40), param_schedulers=cfg.param_scheduler)
        with pytest.raises(UserError, match=complaint) if complaint else contextlib.nullcontext():
            build().schedule.fit_epochs(runner, effective)
        assert complaint or (cfg.param_scheduler[0].end, effective["warmup"]) == (41, 5)


# --- what card, device and job decide --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "family", "right"),
    [
        ("coco_maskrcnn_1x", "resnet", "use --task coco_maskrcnn_r50_1x$"),
        ("coco_maskrcnn_r50_1x", "swin", "use --task coco_maskrcnn_swin_1x$"),
        ("coco_maskrcnn_swin_1x", "vit", "use --task coco_maskrcnn_1x or coco_maskrcnn_1x_heads8 or coco_cascade_"),
        ("ade20k_semfpn_40k", "resnet", "use --task ade20k_semfpn_r50_40k$"),
        ("ade20k_upernet_160k", "swin", "use --task ade20k_upernet_swin_160k or ade20k_upernet_swin_160k_tta$"),
        ("ade20k_upernet_swin_160k", "vit", "use --task ade20k_upernet_160k or "),
    ],
)
def test_another_family_is_sent_to_its_recipe(name, family, right):
    with pytest.raises(UserError, match=right):
        recipe.check_family(recipe.read(CONFIGS / f"{name}.py"), CARDS[family])


def test_blocks():
    deep = CARDS["vit"].override({"depth": 24})
    for name, blocks in (("coco_maskrcnn_1x", [7, 11, 15, 23]), ("ade20k_semfpn_40k", [5, 11, 17, 23])):
        cfg, effective = configured(name, card=deep)
        assert list(cfg.model.backbone.blocks) == effective["blocks"] == blocks
    assert configured("coco_maskrcnn_1x", "blocks=2,5,8,11")[1]["blocks"] == [2, 5, 8, 11]
    with pytest.raises(UserError, match="the network has 12 blocks, 0 to 11"):
        configured("coco_maskrcnn_1x", "blocks=2,5,8,12")
    with pytest.raises(UserError, match="rising"):
        configured("coco_maskrcnn_1x", "blocks=2,5,5,11")
    with pytest.raises(UserError, match="of a ViT only"):
        configured("coco_maskrcnn_swin_1x", "blocks=2,5,8,11")


def test_heads_of_the_card():
    card = CARDS["vit"].override({"heads": 3})
    assert configured("coco_maskrcnn_1x", card=card)[1]["heads"] == 3
    cfg, effective = configured("coco_maskrcnn_1x_heads8", card=card)
    assert (effective["heads"], cfg.model.backbone.card["heads"]) == (8, 8)
    with pytest.raises(UserError, match="8 heads do not divide"):
        configured("coco_maskrcnn_1x_heads8", card=Card("vit", patch=16, dim=36, depth=12, heads=6, **STATS))


def test_unknown_normalisation_is_refused():
    with pytest.raises(UserError, match="mean and std are unknown"):
        configured("coco_maskrcnn_1x", card=Card("vit", patch=16, dim=48, depth=12, heads=6))


@pytest.mark.parametrize(
    ("name", "override", "device", "kind", "dtype", "said"),
    [
        ("coco_maskrcnn_1x", None, "cuda", "AmpOptimWrapper", "float16", "fp16"),
        ("coco_maskrcnn_1x", None, "cuda:1", "AmpOptimWrapper", "float16", "fp16"),
        ("coco_maskrcnn_1x", None, "cpu", "OptimWrapper", None, "off (fp16 needs a GPU)"),
        ("coco_maskrcnn_1x", "amp=off", "cuda", "OptimWrapper", None, "off"),
        ("coco_maskrcnn_1x", "amp=bf16", "cuda", "AmpOptimWrapper", "bfloat16", "bf16"),
        ("coco_maskrcnn_swin_1x", None, "cuda", "AmpOptimWrapper", "float16", "fp16"),
        ("coco_maskrcnn_r50_1x", None, "cuda", "OptimWrapper", None, "off"),
        ("ade20k_semfpn_40k", None, "cuda", "OptimWrapper", None, "off"),
        ("ade20k_semfpn_40k", "amp=bf16", "cuda", "AmpOptimWrapper", "bfloat16", "bf16"),
    ],
)
def test_mixed_precision(name, override, device, kind, dtype, said):
    cfg, effective = configured(name, *[override] * bool(override), device=device)
    wrapper = cfg.optim_wrapper
    assert (wrapper.type, wrapper.get("dtype"), effective["amp"]) == (kind, dtype, said)
    if dtype:  # fp16 needs the loss scaled; bf16 has float32's range
        assert wrapper.loss_scale == ("dynamic" if dtype == "float16" else 1.0)


@every
def test_batch_norm_by_device(name):
    """SyncBN on GPUs, BN on CPU, where torch's refuses to work; the record says which."""
    kinds = {}
    for device in ("cuda", "cpu"):
        cfg, effective = configured(name, device=device)
        text = json.dumps(cfg.model.to_dict())
        kinds[device] = {kind for kind in ("SyncBN", "BN") if f'"type": "{kind}"' in text}
        assert effective["norm"] == next(iter(kinds[device]), None)
    assert kinds == (
        {"cuda": {"SyncBN"}, "cpu": {"BN"}} if name != "coco_maskrcnn_swin_1x" else {"cuda": set(), "cpu": set()}
    )


def test_positions():
    """The recipe's rule is over the card's; DINO's, marked, where the format's own has no answer."""
    assert configured("coco_maskrcnn_1x", card=CARDS["vit"].override({"pos_resize": "timm"}))[1]["pos_rule"] == "timm"
    assert configured("coco_maskrcnn_1x", "pos_resize=size")[1]["pos_rule"] == "size"
    for rule in ("stored", "square"):
        card = CARDS["vit"].override({"pos_resize": rule})
        assert configured("coco_maskrcnn_1x", card=card)[1]["pos_rule"] == "dino (assumed)"
        assert configured("ade20k_semfpn_40k", card=card)[1]["pos_rule"] == "size"
    card = CARDS["vit"].override({"pos": "rotary", "pos_resize": "rotary"})
    cfg, effective = configured("ade20k_semfpn_40k", card=card)
    assert (cfg.model.backbone.pos_resize, effective["pos_rule"]) == (None, "rotary")


@pytest.mark.parametrize(("patch", "strides"), [(8, [4, 8, 16, 32]), (14, [3.5, 7, 14, 28]), (16, [4, 8, 16, 32])])
def test_strides_follow_the_patch(patch, strides):
    """The heads are told what the backbone gives, or boxes would be off; anchors keep their sizes in pixels."""
    card = CARDS["vit"].override({"patch": patch, "pos": "learned 4x4"})
    cfg, _ = configured("coco_maskrcnn_1x", "model.neck.out_channels=16", card=card, device="cpu")
    anchors, heads = cfg.model.rpn_head.anchor_generator, cfg.model.roi_head
    assert list(heads.bbox_roi_extractor.featmap_strides) == list(heads.mask_roi_extractor.featmap_strides) == strides
    assert list(anchors.strides) == [*strides, 2 * strides[-1]]
    model = model_of(cfg)
    sizes = [base[:, 2:] - base[:, :2] for base in model.rpn_head.prior_generator.base_anchors]
    areas = [s.prod(1).sqrt().mean().item() for s in sizes]
    assert areas == pytest.approx([32, 64, 128, 256, 512])
    with torch.no_grad():
        maps = model.eval().backbone(torch.zeros(1, 3, 112, 112))
    assert [112 / m.shape[-1] for m in maps] == pytest.approx(strides, rel=0.2)  # 112 / 32 is 3.5: rounded down to 3


def test_seed_folders_and_launcher():
    cfg, effective = configured("coco_maskrcnn_1x", seed=7)
    assert (cfg.randomness.seed, cfg.work_dir, cfg.resume, cfg.load_from) == (7, "/out", False, None)
    assert cfg.train_dataloader.sampler.shuffle
    assert not cfg.val_dataloader.sampler.shuffle
    assert "/out" not in json.dumps(effective)
    assert "/data" not in json.dumps(effective)


@every
def test_what_is_recorded_is_plain_and_whole(name):
    """JSON; the protocol's numbers do not depend on how many GPUs share the work, and say nothing of this machine."""
    _, one = configured(name, world=1, device="cpu")
    _, many = configured(name, world=8)
    json.dumps(one, allow_nan=False)
    for part in ("model", "param_scheduler", "train_cfg", "optim_wrapper", "val_dataloader"):
        assert one["config"][part] == many["config"][part]
    assert one["config"]["optim_wrapper"]["optimizer"]["weight_decay"] > 0
    assert one["id"] == recipe.read(CONFIGS / f"{name}.py").protocol_id
    assert one["batch"] == many["batch"]
    if many["norm"]:  # the images whose statistics are taken together
        assert (one["norm_images"], many["norm_images"]) == (one["per_gpu"], 8 * many["per_gpu"])


def test_limits(small):
    """The first N pictures, in the file's order; as many as there are is no limit."""
    from mmengine.registry import DATASETS, DefaultScope

    for name, data in (("coco_maskrcnn_1x", small["coco"]), ("ade20k_semfpn_40k", small["ade20k"])):
        for limit, count in ((2, 2), (3, 3), (9, 3), (None, 3)):
            cfg, effective = configured(name, f"classes={CLASSES[name]}", data=data, limit=limit)
            with DefaultScope.overwrite_default_scope(cfg.default_scope):
                found = DATASETS.build(cfg.val_dataloader.dataset)
            assert len(found) == count
            assert effective["limit"] == limit
            first = [found.get_data_info(i)["img_path"] for i in range(count)]
            assert first == sorted(first)
        if name.startswith("coco"):
            assert configured(name, data=data, limit=2)[0].val_evaluator.limit == 2


def test_a_recipe_of_the_users_own(tmp_path, small):
    """From mm's bases, with the least harness block: our evaluator, the card's widths, blocks by depth."""
    path = tmp_path / "own_1x.py"
    path.write_text(
        "_base_ = ['mmdet::_base_/models/mask-rcnn_r50_fpn.py', 'mmdet::_base_/datasets/coco_instance.py',\n"
        "          'mmdet::_base_/schedules/schedule_1x.py', 'mmdet::_base_/default_runtime.py']\n"
        "harness = dict(version=1, metrics=('AP_bb', 'AP_mk'), noise=0.2, published=(), family='vit')\n"
        "model = dict(backbone=dict(_delete_=True, type='TimmViT'), neck=dict(in_channels=None))\n"
    )
    work = Training(str(path), "", str(small["coco"]), "/out", [])
    cfg, effective = build().config(work, CARDS["vit"], 2, "cpu")
    assert (cfg.val_evaluator.type, sorted(cfg.val_evaluator.metric)) == ("SelfpatchCocoMetric", ["bbox", "segm"])
    assert (effective["batch"], effective["per_gpu"], effective["accumulate"]) == (4, 2, 1)  # as its data loader says
    assert (effective["lr"], effective["blocks"], effective["id"]) == (0.02, [3, 5, 7, 11], "own_1x-v1")
    assert model_of(cfg).neck.in_channels == [48] * 4


# --- one step of every recipe ----------------------------------------------------------------------------------------

CLASSES = {name: len(COCO_CLASSES if name.startswith("coco") else ADE_CLASSES) for name in NAMES}
TINY = {
    "coco": (
        *("model.neck.out_channels=16", "model.rpn_head.in_channels=16", "model.rpn_head.feat_channels=16"),
        *(f"model.roi_head.{k}_roi_extractor.out_channels=16" for k in ("bbox", "mask")),
        *("model.roi_head.mask_head.in_channels=16", "model.roi_head.mask_head.conv_out_channels=16"),
        *("model.train_cfg.rpn_proposal.max_per_img=50", "model.test_cfg.rpn.max_per_img=50"),
    ),
    "ade20k": (
        *("model.decode_head.channels=16", "model.data_preprocessor.size=[64,64]"),
        *("train_dataloader.dataset.pipeline.2.scale=[96,64]", "train_dataloader.dataset.pipeline.3.crop_size=[64,64]"),
    ),
}
DETR = "train_dataloader.dataset.pipeline.3.transforms"
TINY_OF = {
    "coco_maskrcnn_r50_1x": (
        "train_dataloader.dataset.pipeline.2.scales=[[96,64],[96,72]]",
        "model.roi_head.bbox_head.conv_out_channels=16",
    ),
    "semfpn": ("model.neck.out_channels=16", "model.decode_head.in_channels=[16,16,16,16]"),
    "upernet": ("model.auxiliary_head.channels=16",),
    "coco": (
        *(f"{DETR}.{k}.scales=[[64,96],[72,96]]" for k in ("0.0", "1.0", "1.2")),
        f"{DETR}.1.1.crop_size=[40,60]",
    ),
}
SMALL_RESNET = CARDS["resnet"].override({"stem_channels": 16, "widths": "32,48,64,96"})


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small")
    return {
        "coco": make_coco(folder / "coco", (4, 3), (64, 96)),
        "ade20k": make_ade20k(folder / "ade20k", (4, 3), (64, 96)),
    }


def tiny(name):
    """Overrides that make a recipe's heads and pictures small; the structure stays."""
    dataset = name.partition("_")[0]
    extra = TINY_OF.get(name) or next(v for k, v in TINY_OF.items() if k in name)
    if dataset == "coco":
        box = "model.roi_head.bbox_head"
        boxes = [f"{box}.{i}" for i in range(3)] if "cascade" in name else [box]
        extra += tuple(f"{key}.{width}" for key in boxes for width in ("in_channels=16", "fc_out_channels=32"))
        extra += tuple(f"{key}.conv_out_channels=16" for key in boxes[1:] and boxes)
    view = "val_dataloader.dataset.pipeline.1"
    views = [f"{view}.transforms.0.{i}" for i in range(6)] if name.endswith("tta") else [view]
    width, height = (48, 32) if views[1:] else (96, 64)
    sizes = [f"{key}.scale=[{width + 12 * i},{height + 8 * i}]" for i, key in enumerate(views)]
    return (*TINY[dataset], *extra, *sizes, "batch=2", "per_gpu=2", "workers=0")


def one_step(name, data, *overrides, limit=1):
    """Names of the losses of one optimiser step, and of the metrics of `limit` pictures, by the recipe's own parts."""
    from mmengine.registry import DefaultScope
    from mmengine.runner import Runner

    family = recipe.read(CONFIGS / f"{name}.py").family
    card = SMALL_RESNET if family == "resnet" else CARDS[family]
    cfg, _ = configured(name, *tiny(name), *overrides, data=data, card=card, world=1, device="cpu", limit=limit)
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        train = Runner.build_dataloader(cfg.train_dataloader, seed=0)
        val = Runner.build_dataloader(cfg.val_dataloader, seed=0)
        model = model_of(cfg)
        model.init_weights()
        wrapper = optimiser(cfg, model)
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        losses = model.train().train_step(next(iter(train)), wrapper)
        losses = {k: float(torch.as_tensor(v).detach().sum()) for k, v in losses.items() if "loss" in k}
        assert all(map(math.isfinite, losses.values()))
        changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
        assert any(n.startswith("backbone") for n in changed)
        assert any(not n.startswith("backbone") for n in changed)
        evaluator = Runner.build_evaluator(None, cfg.val_evaluator)
        evaluator.dataset_meta = val.dataset.metainfo
        with torch.no_grad():
            for batch in val:
                evaluator.process(data_samples=model.eval().test_step(batch), data_batch=batch)
        metrics = evaluator.evaluate(len(val.dataset))
    return set(losses), {k.rpartition("/")[2] for k in metrics}


def check_step(name, losses, metrics):
    wanted = {"loss_cls", "loss_bbox", "loss_mask", "loss_rpn_cls"} if name.startswith("coco") else {"decode.loss_ce"}
    if "cascade" in name:  # of three stages
        wanted = {"loss_rpn_cls", *(f"s{i}.loss_{of}" for i in range(3) for of in ("cls", "bbox", "mask"))}
    assert wanted | ({"aux.loss_ce"} if "upernet" in name else set()) <= losses
    assert {"AP_bb", "AP_mk"} <= metrics if name.startswith("coco") else metrics == {"mIoU", "aAcc", "mAcc"}
    assert metrics <= {m.name for m in recipe.read(CONFIGS / f"{name}.py").metrics}


@pytest.mark.parametrize("name", [n for n in NAMES if "heads8" not in n and "ibot_base" not in n])  # other values
def test_one_step_of_training_and_one_of_testing(name, small):
    """Drawn pictures through the recipe's own pipelines, losses, optimiser and evaluation, at a reduced size."""
    check_step(name, *one_step(name, small[name.partition("_")[0]], f"classes={CLASSES[name]}"))


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "data"), [("coco_maskrcnn_1x_heads8", "data/coco"), ("ade20k_upernet_160k", "data/ade_like")]
)
def test_one_step_on_real_pictures(name, data, need):
    """COCO's 80 classes, crowds included, and label maps of up to 150."""
    check_step(name, *one_step(name, need(data), limit=2))


# --- resuming --------------------------------------------------------------------------------------------------------


class Hostile:
    def __reduce__(self):
        return os.system, ("touch pwned",)


def test_a_state_is_read_without_running_what_it_holds(tmp_path, monkeypatch):
    from mmengine.runner import CheckpointLoader

    from selfpatch_bench.benchmarks.mm.hooks import SCHEME

    monkeypatch.chdir(tmp_path)
    state = {"state_dict": {"w": torch.ones(2)}, "optimizer": {"state": {0: {"step": 3}}, "param_groups": []}}
    torch.save(state, "last.pth")
    found = CheckpointLoader.load_checkpoint(f"{SCHEME}last.pth", map_location="cpu")
    assert torch.equal(found["state_dict"]["w"], torch.ones(2))
    assert found["optimizer"] == state["optimizer"]
    torch.save(state | {"meta": Hostile()}, "last.pth")
    with pytest.raises(UserError, match=r"last\.pth: .*system"):
        CheckpointLoader.load_checkpoint(f"{SCHEME}last.pth", map_location="cpu")
    assert os.listdir() == ["last.pth"]


# --- the images of a training ----------------------------------------------------------------------------------------


class Noted(torch.utils.data.Dataset):
    """Three images, each an index and what was drawn for it."""

    metainfo = "facts"

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return index, np.random.random(), random.random()

    def get_data_info(self, index):
        return {"index": index}


def test_what_is_drawn_for_an_image_depends_on_seed_epoch_and_image():
    build()
    from mmengine.registry import DATASETS

    from selfpatch_bench.benchmarks.mm.hooks import EpochSampler, RepeatableDataset

    DATASETS.register_module(module=Noted, force=True)
    data = RepeatableDataset({"type": "Noted"}, seed=1)
    epochs = EpochSampler(data, {"type": "DefaultSampler", "shuffle": True}, seed=0)
    assert sorted(epochs) == [0, 1, 2]
    epochs.set_epoch(2)
    assert sorted(epochs) == [6, 7, 8]
    assert data[7] == data[7]
    assert (data[7][0], data.get_data_info(7), data.metainfo) == (1, {"index": 1}, "facts")
    other = RepeatableDataset({"type": "Noted"}, seed=2)
    assert len({data[1], data[4], data[7], data[8], other[7]}) == 5
    assert len({drawn for _, *both in (data[1], data[4], data[7], data[8], other[7]) for drawn in both}) == 10

    def endless():
        return EpochSampler(data, {"type": "InfiniteSampler"}, seed=0)

    numbers, resumed = list(itertools.islice(endless(), 7)), endless()
    assert [n // 3 for n in numbers] == [0, 0, 0, 1, 1, 1, 2]
    resumed.skip(4)
    assert list(itertools.islice(resumed, 3)) == numbers[4:]
