"""The mm recipes against the numbers of the protocols, on configs and models that were really built."""

import ast
import math

import pytest
import torch

from conftest import REPO
from mm_building import CARDS, CONFIGS, built, configured, mm, optimiser
from selfpatch_bench.benchmarks.mm import recipe
from selfpatch_bench.pretrain.common.errors import UserError

VIT, SWIN, RESNET = (
    ("pos_embed", "cls_token", "norm"),
    ("absolute_pos_embed", "relative_position_bias_table", "norm"),
    (),
)
ADAMW = {"type": "AdamW", "betas": (0.9, 0.999)}
COCO_VIT = {
    "family": "vit", "batch": 8, "amp": "fp16", "drop_path": 0.05,
    "optimizer": {**ADAMW, "lr": 5e-5, "weight_decay": 0.05},
    # the learning rate at iterations, by the formula of protocols.md 2
    "lr": {0: 5e-8, 500: 2.5025e-5, 1000: 5e-5, 1500: 5e-5}, "no_decay": VIT, "blocks": [3, 5, 7, 11],
    "published": {("coco_det", "mask_rcnn_vit_fpn_1x"), ("coco_seg", "mask_rcnn_vit_fpn_1x")},
}  # fmt: skip
ADE = {"family": "vit", "amp": "off", "drop_path": 0.1, "optimizer": {**ADAMW, "lr": 6e-5, "weight_decay": 0.01}}
POLY40 = {0: 6e-11, 750: 2.94375e-5, 1500: 5.775e-5, 20000: 3e-5}
# At t = 750 half of the warm-up (1 - 0.5 (1 - 1e-6)) and 1 - 750/160000 of the poly; the others likewise.
POLY160 = {0: 6e-11, 750: 6e-5 * (1 - 0.5 * (1 - 1e-6)) * (1 - 750 / 160000), 1500: 6e-5 * (1 - 1500 / 160000)}
SEMFPN, UPERNET = {("ade20k", "semantic_fpn_40k")}, {("ade20k", "upernet_160k")}
NUMBERS = {
    "coco_maskrcnn_1x": COCO_VIT | {"heads": 6},
    "coco_maskrcnn_1x_heads8": COCO_VIT | {"heads": 8},
    "coco_maskrcnn_swin_1x": {
        "family": "swin", "batch": 16, "amp": "fp16", "drop_path": 0.1, "no_decay": SWIN,
        "optimizer": {**ADAMW, "lr": 1e-4, "weight_decay": 0.05},
        "lr": {0: 1e-7, 250: 1e-4 * (1 - 0.5 * 0.999), 500: 1e-4, 1500: 1e-4},
        "published": {("coco_det", "mask_rcnn_swin_fpn_1x"), ("coco_seg", "mask_rcnn_swin_fpn_1x")},
    },
    "coco_maskrcnn_r50_1x": {
        "family": "resnet", "batch": 16, "amp": "off", "no_decay": RESNET,
        "optimizer": {"type": "SGD", "lr": 0.02, "momentum": 0.9, "weight_decay": 1e-4},
        "lr": {0: 2e-5, 250: 0.02 * (1 - 0.5 * 0.999), 500: 0.02, 1500: 0.02},
        "published": {("coco_det", "mask_rcnn_r50fpn_1x"), ("coco_seg", "mask_rcnn_r50fpn_1x")},
    },
    "ade20k_semfpn_40k": ADE | {
        "batch": 32, "iterations": 40000, "lr": POLY40, "blocks": [2, 5, 8, 11], "heads": 6, "published": SEMFPN,
        "no_decay": ("pos_embed", "cls_token"),  # ln1 and ln2 are decayed
    },
    "ade20k_semfpn_40k_pyramid": ADE | {
        "batch": 32, "iterations": 40000, "lr": POLY40, "blocks": [2, 5, 8, 11], "heads": 6, "published": set(),
        "no_decay": VIT,
    },
    "ade20k_semfpn_r50_40k": {
        "family": "resnet", "batch": 16, "amp": "off", "iterations": 40000, "no_decay": RESNET, "published": SEMFPN,
        "optimizer": {"type": "SGD", "lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4},
        "lr": {0: 0.01, 20000: (0.01 - 1e-4) * 0.5**0.9 + 1e-4, 39999: (0.01 - 1e-4) * (1 / 40000) ** 0.9 + 1e-4},
    },
    "ade20k_upernet_160k": ADE | {
        "batch": 16, "iterations": 160000, "lr": POLY160, "blocks": [3, 5, 7, 11], "heads": 6, "published": UPERNET,
        "no_decay": VIT, "drop_path": 0.05,
    },
    "ade20k_upernet_swin_160k": ADE | {
        "family": "swin", "batch": 16, "iterations": 160000, "lr": POLY160, "published": UPERNET, "drop_path": 0.3,
        "no_decay": SWIN,
    },
}  # fmt: skip
COCO = [name for name in NUMBERS if name.startswith("coco")]
ADE20K = [name for name in NUMBERS if name.startswith("ade")]
every = pytest.mark.parametrize("name", NUMBERS)
IBOT = [
    f"{name}_ibot_{size}_{of}"
    for size in ("small", "base")
    for name, of in (("coco_cascade", "1x"), ("ade20k_upernet", "160k"))
]
OTHERS = [*IBOT, "ade20k_upernet_swin_160k_tta"]  # their numbers: test_mm_ibot.py and test_mm_augmented.py

# --- what is read without mm -----------------------------------------------------------------------------------------


def test_the_recipes_are_those_of_the_protocols():
    assert {p.stem for p in CONFIGS.glob("[a-z]*.py")} == {*NUMBERS, *OTHERS}


@every
def test_declarations(name):
    r, want = recipe.read(CONFIGS / f"{name}.py"), NUMBERS[name]
    assert (r.family, r.batch, r.amp, r.lr) == (want["family"], want["batch"], want["amp"], want["optimizer"]["lr"])
    assert set(r.published) == want["published"]
    assert r.dataset == ("coco" if name in COCO else "ade20k")
    names = [m.name for m in r.metrics]
    assert names[0] == ("AP_bb" if name in COCO else "mIoU")
    assert len(names) == (12 if name in COCO else 3)
    assert r.heads == (8 if name.endswith("heads8") else None)
    assert r.protocol_id.endswith(f"-v{r.version}")


def test_published_pairs_are_in_the_tables():
    import csv

    rows = set()
    for path in (REPO / "results/published").glob("*.csv"):
        with path.open(newline="", encoding="utf-8") as file:
            rows |= {(row["task"], row["protocol"]) for row in csv.DictReader(file)}
    for name in (*NUMBERS, *OTHERS):
        assert set(recipe.read(CONFIGS / f"{name}.py").published) <= rows


@pytest.mark.parametrize("name", [*NUMBERS, *OTHERS])
def test_header(name):
    text = (CONFIGS / f"{name}.py").read_text(encoding="utf-8").partition("\n_base_")[0]
    for word in ("selfpatch run", f"--task {name} ", "Protocol", "Hardware", "Time", "Expected", "Known", "8 A100s"):
        assert word in text, word


def test_protocol_ids_differ():
    names = [*NUMBERS, *OTHERS]
    assert len({recipe.read(CONFIGS / f"{name}.py").protocol_id for name in names}) == len(names)


def test_reading_needs_no_mm():
    tree = ast.parse((REPO / "benchmarks/mm/recipe.py").read_text(encoding="utf-8"))
    imported = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    imported |= {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) if n.module}
    assert not {name for name in imported if name.split(".")[0] in ("mmengine", "mmcv", "mmdet", "mmseg", "torch")}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("x = 1", "no literal"),
        ("harness = dict(version=open('x'))", "line 1"),
        ("harness = dict(version=1, family='vit', metrics=('mIoU',))", "lacks published"),
        ("harness = dict(version=1, family='cnn', metrics=('mIoU',), published=())", "family='cnn'"),
        ("harness = dict(version=1, family='vit', metrics=('mIoU',), published=(), bach=3)", "bach"),
        ("harness = dict(version=1, family='vit', metrics=('mIoU',), published=(), noise={'AP': 1})", "AP"),
        ("harness = dict(version=1, family='vit', metrics=('mIoU',), published=(), amp='fp8')", "fp8"),
        ("harness = dict(version=1, family='vit', metrics=('top1',), published=())", "dataset"),
        ("harness = dict(version=1, family='vit', metrics=3, published=())", "cannot be read"),
        ("harness = dict(version=1, family='vit', dataset=['coco'], published=())", r"dataset=\('coco',\)"),
        ("harness = dict(", "cannot be read"),
    ],
)
def test_a_bad_harness_block_is_named(tmp_path, text, complaint):
    path = tmp_path / "own.py"
    path.write_text(text)
    with pytest.raises(UserError, match=complaint):
        recipe.read(path)


def test_metrics_that_are_not_named_are_the_evaluators(tmp_path):
    path = tmp_path / "own.py"
    path.write_text("harness = dict(version=1, family='vit', dataset='ade20k', noise=0.5, published=())")
    assert [(m.name, m.noise) for m in recipe.read(path).metrics] == [("mIoU", 0.5), ("aAcc", 0.5), ("mAcc", 0.5)]


def test_the_least_harness_block(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(
        "raise SystemExit\nharness = dict(version=2, metrics=('AP_bb',), noise=0.5, published=(), family='vit')"
    )
    r = recipe.read(path)  # without running the file
    assert (r.name, r.dataset, r.protocol_id, r.metrics[0].noise, r.batch) == ("own", "coco", "own-v2", 0.5, None)


@pytest.mark.parametrize(
    ("total", "world", "per_gpu", "expected"),
    [
        (8, 8, 1, (1, 1)),
        (8, 1, 1, (1, 8)),
        (8, 4, 1, (1, 2)),
        (32, 8, 4, (4, 1)),
        (32, 2, 4, (4, 4)),
        (16, 8, 4, (2, 1)),
        (12, 2, 4, (3, 2)),  # 6 a GPU: two times 3, since 4 does not divide them
        (16, 16, 2, (1, 1)),
    ],
)
def test_batching(total, world, per_gpu, expected):
    assert recipe.batching(total, world, per_gpu) == expected
    assert math.prod(expected) * world == total


def test_a_batch_that_cannot_be_shared_is_refused():
    with pytest.raises(UserError, match="use 1, 2, 4, 8 of them, or batch=9"):
        recipe.batching(8, 3, 1)


@pytest.mark.parametrize(
    ("depth", "blocks"), [(12, (3, 5, 7, 11)), (24, (7, 11, 15, 23)), (8, (2, 3, 5, 7)), (6, (1, 2, 3, 5))]
)
def test_blocks_by_depth(depth, blocks):
    assert recipe.blocks_of((3, 5, 7, 11), depth) == blocks


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("blok=3,5,7,11", "did you mean blocks"),
        ("batch=0", "at least 1"),
        ("batch=two", "at least 1"),
        ("amp=fp8", "off, fp16, bf16"),
        ("blocks=1,2,3", "four"),
        ("pos_resize=nearest", "dino"),
        ("lr=-1", "above 0"),
        ("with_cp=2", "true or false"),
        ("batch", "key=value"),
        ("epochs=012", "a whole number"),
        ("model.backbone.drop_path=${oc.env:RATE}", "write the value itself"),
    ],
)
def test_bad_overrides(override, complaint):
    with pytest.raises(UserError, match=complaint):
        recipe.parse([override])


def test_overrides_are_of_their_kind():
    own, dotted = recipe.parse(["amp=off", "lr=5e-5", "blocks=1,2,3,4", "model.x=1e-3", "model.y=[1, 2]", "a.b=null"])
    assert own == {"amp": "off", "lr": 5e-5, "blocks": (1, 2, 3, 4)}
    assert dotted == {"model.x": 1e-3, "model.y": [1, 2], "a.b": None}


# --- numbers of the built configs ------------------------------------------------------------------------------------


@mm
@every
def test_optimiser(name):
    cfg, effective = configured(name)
    found = cfg.optim_wrapper.optimizer
    assert {k: tuple(v) if isinstance(v, list) else v for k, v in found.items()} == NUMBERS[name]["optimizer"]
    assert cfg.optim_wrapper.get("clip_grad") is None
    assert effective["lr"] == NUMBERS[name]["optimizer"]["lr"]
    assert effective["batch"] == NUMBERS[name]["batch"]


def rates(cfg, steps):
    """Learning rates of iterations 0, 1 ... by mmengine's schedulers; iterations that a dry run does not train."""
    from mmengine.registry import PARAM_SCHEDULERS, DefaultScope

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=cfg.optim_wrapper.optimizer.lr)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        schedulers = [
            PARAM_SCHEDULERS.build(dict(s), default_args={"optimizer": optimizer})
            for s in cfg.param_scheduler
            if not s.get("by_epoch", True)
        ]
    found = []
    optimizer.step()  # once, or mmengine warns
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        for scheduler in schedulers:
            scheduler.step()
    return found


@mm
@every
@pytest.mark.parametrize("k", [1, 2])
def test_learning_rates(name, k):
    """At the iterations that protocols.md names; with k micro-batches for a step, at iterations times k.

    2e-6: protocols.md gives the rate at 750 to six digits (2.94375e-5 for 2.9437529e-5); a schedule that is an
    iteration off differs by 6e-4 there.
    """
    want = {t: lr for t, lr in NUMBERS[name]["lr"].items() if k == 1 or t <= 1500}
    cfg, _ = configured(name, f"batch={NUMBERS[name]['batch'] * k}")
    found = rates(cfg, k * max(want) + 1)
    assert [found[k * t] for t in want] == pytest.approx(list(want.values()), rel=2e-6)


@mm
@pytest.mark.parametrize("name", COCO)
@pytest.mark.parametrize("world", [8, 1])
def test_epochs_and_their_drops(name, world):
    """A tenth of the rate after epochs 8 and 11, whatever the number of GPUs."""
    from mmengine.registry import PARAM_SCHEDULERS, DefaultScope

    cfg, _ = configured(name, world=world)
    assert (cfg.train_cfg.type, cfg.train_cfg.max_epochs, cfg.train_cfg.val_interval) == ("EpochBasedTrainLoop", 12, 1)
    (drops,) = [s for s in cfg.param_scheduler if s.get("by_epoch", True)]
    lr = NUMBERS[name]["optimizer"]["lr"]
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        scheduler = PARAM_SCHEDULERS.build(dict(drops), default_args={"optimizer": optimizer})
    found = []
    for _ in range(12):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert found == pytest.approx([lr] * 8 + [lr / 10] * 3 + [lr / 100])


@mm
@every
@pytest.mark.parametrize("world", [8, 4, 1])
def test_batch_and_accumulation(name, world):
    """The product is the protocol's batch; iterations and intervals count micro-batches, the checkpoints' too."""
    cfg, effective = configured(name, world=world)
    k = cfg.optim_wrapper.get("accumulative_counts", 1)
    assert cfg.train_dataloader.batch_size * k * world == NUMBERS[name]["batch"]
    assert (effective["per_gpu"], effective["accumulate"]) == (cfg.train_dataloader.batch_size, k)
    if name in ADE20K:
        steps, interval = NUMBERS[name]["iterations"], NUMBERS[name]["iterations"] // 10
        assert cfg.train_cfg.max_iters == k * steps
        assert (cfg.default_hooks.checkpoint.interval, cfg.default_hooks.checkpoint.by_epoch) == (k * interval, False)
        assert effective["config"]["train_cfg"]["max_iters"] == steps  # the protocol's own numbers stay in the record
    else:
        assert cfg.default_hooks.checkpoint.interval == 1
    assert k == (1 if world == 8 else k)
    if world == 1:
        assert k > 1


@mm
def test_batch_of_the_user():
    cfg, effective = configured("ade20k_semfpn_40k", "batch=16", "per_gpu=1", world=4)
    assert (cfg.train_dataloader.batch_size, effective["accumulate"], effective["lr"]) == (1, 4, 6e-5)
    cfg, effective = configured("ade20k_semfpn_40k", "batch=16", scale_lr=True)
    assert (cfg.optim_wrapper.optimizer.lr, effective["lr"], effective["lr_scale"]) == (3e-5, 3e-5, 0.5)
    cfg, _ = configured("ade20k_semfpn_r50_40k", "batch=32", scale_lr=True)
    assert (cfg.optim_wrapper.optimizer.lr, cfg.param_scheduler[0].eta_min) == (0.02, 2e-4)
    assert configured("ade20k_semfpn_40k", scale_lr=True)[1]["lr"] == 6e-5
    with pytest.raises(UserError, match="per_gpu=3"):
        configured("ade20k_semfpn_40k", "per_gpu=3")
    with pytest.raises(UserError, match="32 images per step cannot be shared by 3 GPUs"):
        configured("ade20k_semfpn_40k", world=3)


@mm
@pytest.mark.parametrize("name", COCO)
def test_detection_pipelines(name):
    cfg, _ = configured(name, data="/data/coco")
    load, boxes, *rest, pack = cfg.train_dataloader.dataset.pipeline
    assert (load.type, boxes.with_bbox, boxes.with_mask, pack.type) == (
        "LoadStoredPixels",
        True,
        True,
        "PackDetInputs",
    )
    if name == "coco_maskrcnn_r50_1x":
        resize, flip = rest
        sides(resize, range(640, 801, 32), 1333)
    else:
        flip, choice = rest
        assert choice.type == "RandomChoice"
        assert choice.get("prob") is None  # both alike
        (alone,), (first, crop, second) = choice.transforms
        sides(alone, range(480, 801, 32), 1333)
        sides(first, (400, 500, 600), 1333)
        sides(second, range(480, 801, 32), 1333)
        assert (crop.type, crop.crop_type, tuple(crop.crop_size)) == ("RandomCrop", "absolute_range", (384, 600))
        assert crop.allow_negative_crop
    assert (flip.type, flip.prob) == ("RandomFlip", 0.5)
    for loader in (cfg.val_dataloader, cfg.test_dataloader):
        (resize,) = [t for t in loader.dataset.pipeline if "Resize" in t.type or "Flip" in t.type]
        assert (tuple(resize.scale), resize.keep_ratio, loader.batch_size) == ((1333, 800), True, 1)
        assert loader.dataset.ann_file == "annotations/instances_val2017.json"
    assert cfg.train_dataloader.dataset.ann_file == "annotations/instances_train2017.json"
    assert cfg.model.data_preprocessor.pad_size_divisor == 32
    assert sorted(cfg.val_evaluator.metric) == ["bbox", "segm"]
    assert cfg.val_evaluator.ann_file == "/data/coco/annotations/instances_val2017.json"


def sides(step, short, long):
    assert (step.type, step.keep_ratio) == ("RandomChoiceResize", True)
    assert sorted(tuple(sorted(s)) for s in step.scales) == [(s, long) for s in short]


@mm
@pytest.mark.parametrize("name", ADE20K)
def test_segmentation_pipelines(name):
    cfg, _ = configured(name)
    load, labels, resize, crop, flip, colour, pack = cfg.train_dataloader.dataset.pipeline
    assert labels.reduce_zero_label
    assert (resize.type, tuple(resize.scale), tuple(resize.ratio_range)) == ("RandomResize", (2048, 512), (0.5, 2.0))
    assert (crop.type, tuple(crop.crop_size), crop.cat_max_ratio) == ("RandomCrop", (512, 512), 0.75)
    assert (flip.type, flip.prob, colour.type) == ("RandomFlip", 0.5, "PhotoMetricDistortion")
    assert (load.type, pack.type) == ("LoadStoredPixels", "PackSegInputs")
    assert tuple(cfg.model.data_preprocessor.size) == (512, 512)
    for loader in (cfg.val_dataloader, cfg.test_dataloader):
        (resize,) = [t for t in loader.dataset.pipeline if "Resize" in t.type or "Flip" in t.type]
        assert (tuple(resize.scale), resize.keep_ratio) == ((2048, 512), True)
    assert cfg.model.test_cfg.mode == "whole"
    assert cfg.model.get("pretrained") is None
    assert cfg.train_cfg.type == "IterBasedTrainLoop"


@mm
@every
def test_normalisation_comes_from_the_card(name):
    family = NUMBERS[name]["family"]
    found = configured(name)[0].model.data_preprocessor
    assert (found.mean, found.std) == ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375])
    assert found.bgr_to_rgb
    card = CARDS[family].override({"mean": "0.5", "std": "0.5"})
    cfg, effective = configured(name, card=card)
    assert (cfg.model.data_preprocessor.mean, cfg.model.data_preprocessor.std) == ([127.5] * 3, [127.5] * 3)
    assert (effective["mean"], effective["std"]) == ([0.5] * 3, [0.5] * 3)


# --- built models ----------------------------------------------------------------------------------------------------


@mm
@every
def test_decay_of_every_parameter(name):
    """By name on the really built model, against sets written down here layer by layer."""
    cfg, model = built(name)
    wrapper, want = optimiser(cfg, model), NUMBERS[name]
    decay = {id(p): g["weight_decay"] for g in wrapper.param_groups for p in g["params"]}
    lrs = {g["lr"] for g in wrapper.optimizer.param_groups}
    names = dict(model.named_parameters())
    assert all(p.requires_grad for p in names.values())  # nothing frozen
    found = {n: decay[id(p)] for n, p in names.items()}
    exempt = {n for n, value in found.items() if value == 0}
    assert {value for n, value in found.items() if n not in exempt} == {want["optimizer"]["weight_decay"]}
    assert exempt == expected_exempt(name, names)
    assert lrs == {want["optimizer"]["lr"]}
    assert {g.get("momentum", g.get("betas")) for g in wrapper.optimizer.param_groups} == {
        want["optimizer"].get("momentum", want["optimizer"].get("betas"))
    }
    if want["family"] == "vit":  # what the protocols say is decayed although it is a norm or a bias
        assert {n for n in names if n.endswith(".bias") and "norm" not in n} <= found.keys() - exempt
        if name != "ade20k_semfpn_40k":
            assert {n for n in names if n.startswith("backbone.fpn1.1.")} == {
                "backbone.fpn1.1.weight",
                "backbone.fpn1.1.bias",
            }


def expected_exempt(name, names):
    """Parameters without decay: positions, class token, the blocks' LayerNorms; Swin's norms and bias tables."""
    family, affine = NUMBERS[name]["family"], ("weight", "bias")
    if family == "resnet":
        return set()
    if family == "vit":
        found = {"backbone.encoder.vit.pos_embed", "backbone.encoder.vit.cls_token"}
        if name != "ade20k_semfpn_40k":
            found |= {f"backbone.encoder.vit.blocks.{b}.norm{i}.{a}" for b in range(12) for i in (1, 2) for a in affine}
        assert found <= names.keys()
        return found
    found = {f"backbone.net.patch_embed.norm.{a}" for a in affine} | {
        f"backbone.norm{i}.{a}" for i in range(4) for a in affine
    }
    for stage in range(4):
        layer = f"backbone.net.layers.{stage}"
        found |= {f"{layer}.downsample.norm.{a}" for a in affine if stage}
        for block in range(2):
            found |= {f"{layer}.blocks.{block}.norm{i}.{a}" for i in (1, 2) for a in affine}
            found |= {f"{layer}.blocks.{block}.attn.relative_position_bias_table"}
    assert found <= names.keys()
    return found


@mm
@every
def test_drop_path_of_the_built_model(name):
    """The last block's rate is the protocol's, and it rises linearly from 0; a ResNet has none."""
    from timm.layers import DropPath

    _, model = built(name)
    rate = NUMBERS[name].get("drop_path")
    found = [m.drop_prob for m in model.modules() if isinstance(m, DropPath) and m.drop_prob]
    if rate is None:
        assert not found
        return
    blocks = 12 if NUMBERS[name]["family"] == "vit" else 8
    assert found == pytest.approx([rate * b / (blocks - 1) for b in range(1, blocks) for _ in (0, 1)])


@mm
@pytest.mark.parametrize("name", [n for n in NUMBERS if NUMBERS[n]["family"] == "vit"])
def test_vit_of_the_built_model(name):
    cfg, model = built(name)
    want = NUMBERS[name]
    assert list(model.backbone.blocks) == want["blocks"]
    assert {b.attn.num_heads for b in model.backbone.encoder.vit.blocks} == {want["heads"]}
    _, effective = configured(name)
    assert (effective["blocks"], effective["heads"]) == (want["blocks"], want["heads"])
    assert effective["pos_rule"] == ("size" if name in ADE20K else "dino")
    assert cfg.model.backbone.pos_resize == ("size" if name in ADE20K else None)


@mm
@every
def test_strides_of_the_built_model(name):
    """Sizes of the maps of a 128 x 128 picture; as published, Semantic FPN gets four maps of stride 16."""
    _, model = built(name)
    model.eval()
    with torch.no_grad():
        maps = model.backbone(torch.zeros(1, 3, 128, 128))
    want = [16] * 4 if name == "ade20k_semfpn_40k" else [4, 8, 16, 32]
    assert [128 // m.shape[-1] for m in maps] == want
    assert [m.shape[-1] for m in maps] == [m.shape[-2] for m in maps]


@mm
@pytest.mark.parametrize("name", COCO)
def test_detector(name):
    _, model = built(name)
    assert (model.neck.out_channels, model.neck.num_outs) == (256, 5)
    assert [s[0] for s in model.rpn_head.prior_generator.strides] == [4, 8, 16, 32, 64]
    assert model.rpn_head.prior_generator.num_base_priors == [3] * 5
    head = model.roi_head
    for extractor, size in ((head.bbox_roi_extractor, 7), (head.mask_roi_extractor, 14)):
        assert extractor.featmap_strides == [4, 8, 16, 32]
        assert {tuple(layer.output_size) for layer in extractor.roi_layers} == {(size, size)}
        assert {layer.sampling_ratio for layer in extractor.roi_layers} == {0}
    assert (head.bbox_head.num_classes, head.mask_head.num_classes) == (80, 80)
    assert (head.mask_head.num_convs, head.bbox_head.fc_out_channels) == (4, 1024)
    kinds = {type(m).__name__ for part in (model.neck, head) for m in part.modules() if "Norm" in type(m).__name__}
    assert kinds == ({"BatchNorm2d"} if name == "coco_maskrcnn_r50_1x" else set())
    assert model.test_cfg.rcnn.max_per_img == 100


@mm
def test_resnets_train_everything():
    """Batch norm of backbone, FPN and heads, in training mode; nothing frozen. SyncBN on GPUs, BN without."""
    for name in ("coco_maskrcnn_r50_1x", "ade20k_semfpn_r50_40k"):
        _, model = built(name)
        model.train()
        norms = [m for m in model.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
        assert len(norms) > 10
        assert all(m.training and m.weight.requires_grad for m in norms)
        cfg, effective = configured(name)
        assert effective["norm"] == "SyncBN"
        assert configured(name, device="cpu")[1]["norm"] == "BN"
        assert cfg.model.backbone.type == "TimmResNet"
    roi_head = configured("coco_maskrcnn_r50_1x")[0].model.roi_head
    assert {roi_head.bbox_head.norm_cfg.type, roi_head.mask_head.norm_cfg.type} == {"SyncBN"}
    for part in (built("coco_maskrcnn_r50_1x")[1].neck, *built("coco_maskrcnn_r50_1x")[1].roi_head.children()):
        if "Extractor" not in type(part).__name__:
            assert any(isinstance(m, torch.nn.BatchNorm2d) for m in part.modules()), type(part).__name__


@mm
@pytest.mark.parametrize("name", [n for n in ADE20K if "semfpn" in n])
def test_semantic_fpn(name):
    _, model = built(name)
    assert (model.neck.out_channels, model.neck.num_outs) == (256, 4)
    head = model.decode_head
    assert (type(head).__name__, head.channels, head.dropout_ratio, head.num_classes) == ("FPNHead", 128, 0.1, 150)
    assert list(head.feature_strides) == [4, 8, 16, 32]
    assert [len(s) for s in head.scale_heads] == [1, 2, 4, 6]  # convolutions and upsamplings by 2, of stride 4 to 32
    assert (type(head.loss_decode).__name__, head.loss_decode.use_sigmoid) == ("CrossEntropyLoss", False)
    assert not model.with_auxiliary_head


@mm
@pytest.mark.parametrize("name", [n for n in ADE20K if "upernet" in n])
def test_upernet(name):
    _, model = built(name)
    head, aux = model.decode_head, model.auxiliary_head
    assert (type(head).__name__, head.channels, head.dropout_ratio, head.num_classes) == ("UPerHead", 512, 0.1, 150)
    assert tuple(head.psp_modules.pool_scales) == (1, 2, 3, 6)
    assert (type(aux).__name__, aux.channels, aux.num_convs, aux.in_index) == ("FCNHead", 256, 1, 2)
    assert (aux.loss_decode.loss_weight, aux.num_classes) == (0.4, 150)
    widths = [48] * 4 if NUMBERS[name]["family"] == "vit" else [16, 32, 64, 128]
    assert (head.in_channels, aux.in_channels) == (widths, widths[2])
