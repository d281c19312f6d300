"""Fine-tuned models of others (`--eval-only`): official names into our models, to the last tensor.

golden/official/mm_finetuned.*: names, shapes and maps of the official backbones (make/mm_finetuned.py). Names of necks
and heads: as mmdet 2.11 and mmseg 0.11 have them (Swin-Transformer-Object-Detection c7b2011, mmdet/models/; and
Swin-Transformer-Semantic-Segmentation 87e6f90, mmseg/models/).
"""

import functools
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from conftest import REPO
from mm_building import HAVE, configured, model_of
from selfpatch_bench.benchmarks.checkpoints.finetuned import load_finetuned
from selfpatch_bench.benchmarks.datasets.coco import CATEGORIES
from selfpatch_bench.benchmarks.hub.open import open_checkpoint
from selfpatch_bench.pretrain.common.errors import UserError
from selfpatch_bench.pretrain.common.weights import save_weights

pytestmark = pytest.mark.skipif(not HAVE, reason="the extra mm is not installed")
GOLDEN = REPO / "tests/golden/official"
SHAPES = json.loads((GOLDEN / "mm_finetuned.json").read_text())
FLOAT32 = 1e-5  # the same sums in another order
COCO = [name for _, name in CATEGORIES]
STATS = "img_norm_cfg = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)"
SMALL = ("model.roi_head.bbox_head.fc_out_channels=8",)


def both(*names):
    return [f"{name}.{part}" for name in names for part in ("weight", "bias")]


def with_norm(*names):
    parts = ("conv.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var", "bn.num_batches_tracked")
    return [f"{name}.{part}" for name in names for part in parts]


FPN = both(*(f"neck.{part}.{i}.conv" for part in ("lateral_convs", "fpn_convs") for i in range(4)))
BOX, MASK = "roi_head.bbox_head", "roi_head.mask_head"
MASK_RCNN = FPN + both(
    *("rpn_head.rpn_conv", "rpn_head.rpn_cls", "rpn_head.rpn_reg"),
    *(f"{BOX}.fc_cls", f"{BOX}.fc_reg", f"{BOX}.shared_fcs.0", f"{BOX}.shared_fcs.1"),
    *(f"{MASK}.convs.{i}.conv" for i in range(4)),
    *(f"{MASK}.upsample", f"{MASK}.conv_logits"),
)
DECODE, AUXILIARY = "decode_head", "auxiliary_head"
SEMANTIC_FPN = [
    *FPN,
    *both(f"{DECODE}.conv_seg"),
    *with_norm(*(f"{DECODE}.scale_heads.{i}.{j}" for i, js in enumerate(("0", "0", "02", "024")) for j in js)),
]
UPERNET = [
    *both(f"{DECODE}.conv_seg", f"{AUXILIARY}.conv_seg"),
    *with_norm(*(f"{DECODE}.psp_modules.{i}.1" for i in range(4))),
    *with_norm(*(f"{DECODE}.{part}.{i}" for part in ("lateral_convs", "fpn_convs") for i in range(3))),
    *with_norm(f"{DECODE}.bottleneck", f"{DECODE}.fpn_bottleneck", f"{AUXILIARY}.convs.0"),
]
KINDS = {  # recipe: (backbone, heads, what its config says)
    "coco_maskrcnn_1x": ("selfpatch_detection", MASK_RCNN, "num_heads=3, out_indices=[3, 5, 7, 11]"),
    "ade20k_semfpn_40k": ("selfpatch_segmentation", SEMANTIC_FPN, "num_heads=3, out_indices=(2, 5, 8, 11)"),
    "coco_maskrcnn_swin_1x": ("swin", MASK_RCNN, "num_heads=[1, 2, 3, 4], out_indices=(0, 1, 2, 3)"),
    "ade20k_upernet_swin_160k": ("swin", UPERNET, "num_heads=[1, 2, 3, 4], out_indices=(0, 1, 2, 3)"),
}


@functools.cache
def classes_of(recipe):
    if recipe.startswith("coco"):
        return COCO
    from mmseg.datasets import ADE20KDataset

    return list(ADE20KDataset.METAINFO["classes"])


def index(window):
    """Swin's index of relative positions, in the words of its paper."""
    at = torch.cartesian_prod(torch.arange(window), torch.arange(window))
    away = at[:, None] - at[None] + window - 1
    return away[..., 0] * (2 * window - 1) + away[..., 1]


@functools.cache
def backbone(kind):
    """The state dict of the official network, as make/mm_finetuned.py draws it."""
    generator, state = torch.Generator().manual_seed(0), {}
    for key, shape in SHAPES[kind].items():
        if key.endswith("relative_position_index"):
            state[key] = index(7)
        elif key.endswith("num_batches_tracked"):
            state[key] = torch.tensor(0)
        elif key.endswith(("running_mean", "running_var")):
            state[key] = torch.full(shape, float(key.endswith("var")))
        else:
            drawn = 0.2 * torch.randn(shape, generator=generator)
            state[key] = drawn + 1 if key.endswith("weight") and len(shape) == 1 else drawn
    return state


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """recipe -> (a file as mmcv 1 writes it, its parts, our model for it with other weights, its first state)"""
    folder = tmp_path_factory.mktemp("published")

    @functools.cache
    def made(recipe):
        kind, heads, words = KINDS[recipe]
        state = {f"backbone.{k}": v for k, v in backbone(kind).items()}
        path = folder / f"{recipe}.pth"
        meta = {
            "CLASSES": tuple(classes_of(recipe)),
            "config": f"model = dict({words})\n{STATS}",
            "mmdet_version": "2.11",
        }
        state |= {name: torch.zeros(1) for name in heads}  # for the backbone alone they need no shape
        torch.save({"meta": meta, "state_dict": state}, path)
        checkpoint = open_checkpoint(path)
        export = folder / f"{recipe}.safetensors"
        save_weights(export, checkpoint.reading.weights, checkpoint.card)
        values = SMALL if recipe.startswith("coco") else ("model.backbone.img_size=64",) if "semfpn" in recipe else ()
        cfg, _ = configured(recipe, *values, card=checkpoint.card, device="cpu", export=export, world=1)
        model = model_of(cfg).eval()
        own = model.state_dict()
        assert sorted(heads) == sorted(k for k in own if not k.startswith("backbone."))
        generator = torch.Generator().manual_seed(2)
        for name in heads:
            value = own[name]
            drawn = torch.randn(value.shape, generator=generator)
            state[name] = drawn if value.is_floating_point() else value + 3
        torch.save({"meta": meta, "state_dict": state, "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}}, path)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
        return SimpleNamespace(path=path, meta=meta, state=state, model=model, card=checkpoint.card)

    return made


def again(file, path, meta=None, **changes):
    """The file with other meta and tensors; None removes one."""
    state = {k: v for k, v in (file.state | changes).items() if v is not None}
    torch.save({"meta": file.meta | (meta or {}), "state_dict": state}, path)
    return path


@pytest.mark.parametrize("recipe", KINDS)
def test_official_models_go_into_ours_whole(published, recipe):
    """The maps are the official backbone's (its own positions at another size of pictures too), the heads are there."""
    file, golden = published(recipe), dict(np.load(GOLDEN / "mm_finetuned.npz"))
    accounting = load_finetuned(file.model, file.path, classes_of(recipe))
    kind = KINDS[recipe][0]
    count = sum(not k.endswith("relative_position_index") for k in file.state)
    left = ", 8 of the file left out (rebuilt)" if kind == "swin" else ""
    assert accounting == f"{count}/{count} tensors of the fine-tuned model loaded{left}"
    own = file.model.state_dict()
    assert all(torch.equal(own[k], v) for k, v in file.state.items() if not k.startswith("backbone."))
    size = (256, 288) if kind == "swin" else (80, 112)
    image = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        maps = file.model.backbone(image)
    for i, found in enumerate(maps):
        expected = torch.from_numpy(golden[f"{kind}.{i}"])
        assert float((found - expected).abs().max() / expected.abs().max()) < FLOAT32


def test_a_detector_with_another_number_of_heads(published, tmp_path):
    """Its own config says 3; the released config's question, 6 or 8, is one of the same tensors."""
    file = published("coco_maskrcnn_1x")
    assert (file.card.heads, file.card.pos_resize) == (3, "dino")
    cfg, effective = configured("coco_maskrcnn_1x_heads8", *SMALL, card=file.card, device="cpu", world=1)
    assert effective["heads"] == 8
    accounting = load_finetuned(model_of(cfg), file.path, COCO)
    assert accounting.endswith("loaded; evaluated with 8 attention heads, its config says 3")


def test_our_own_file(published, tmp_path):
    """As mmengine writes it, with what it keeps beside the model."""
    file = published("coco_maskrcnn_1x")
    load_finetuned(file.model, file.path, COCO)
    state = {k: v.clone() for k, v in file.model.state_dict().items()}
    beside = {"optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}, "message_hub": {"log": torch.ones(2)}}
    card = "card=dict(heads=4, mean=(0.485, 0.456, 0.406), pos_resize='dino'), pos_resize=None"
    meta = {"dataset_meta": {"classes": COCO}, "cfg": f"{card}, {STATS}"}
    torch.save({"meta": meta, "state_dict": state, **beside}, tmp_path / "last.pth")
    with torch.no_grad():
        file.model.backbone.fpn1[0].bias.add_(1)
    accounting = load_finetuned(file.model, tmp_path / "last.pth", COCO)
    assert accounting.startswith(f"{len(state)}/{len(state)} tensors of the fine-tuned model loaded; ")
    assert accounting.endswith("with 3 attention heads, its config says 4")
    assert all(torch.equal(v, state[k]) for k, v in file.model.state_dict().items())
    known = open_checkpoint(tmp_path / "last.pth").card  # what its own config says of it as a checkpoint
    assert (known.heads, known.mean, known.pos_resize) == (4, (0.485, 0.456, 0.406), "dino")


FC, QKV = "roi_head.bbox_head.fc_cls.weight", "backbone.blocks.3.attn.qkv.bias"
XCIT = {f"backbone.{k}": torch.ones(v) for k, v in SHAPES["xcit"].items()}


@pytest.mark.parametrize(
    ("meta", "changes", "words"),
    [
        (
            {},
            {FC: torch.ones(2, 8)},
            r"1 of another shape: roi_head\.bbox_head\.fc_cls\.weight \[2, 8\] instead of \[81, 8\]",
        ),
        ({}, {FC: None}, r"1 missing: roi_head\.bbox_head\.fc_cls\.weight$"),
        ({}, {QKV: None}, "qkv"),
        ({}, {"roi_head.mask_iou_head.fc.weight": torch.ones(2)}, "1 unexpected: roi_head.mask_iou_head"),
        ({}, {"teacher.weight": torch.ones(2)}, "1 tensors belong to no part of it: .*teacher.weight"),
        ({}, {FC: torch.full((81, 8), float("nan"))}, r"NaN or inf: roi_head.bbox_head.fc_cls"),
        ({"CLASSES": COCO[1:]}, {}, "it has 79 classes, these data have 80"),
        ({"CLASSES": [*COCO[:2], "plane", *COCO[3:]]}, {}, "class 2 is 'plane', that of these data 'car'"),
        ({"CLASSES": None, "dataset_meta": {"CLASSES": COCO[::-1]}}, {}, "class 0 is 'toothbrush'"),
        ({"mmdet_version": "1.2.0"}, {}, r"mmdet 1.2.0, where the background"),
        ({"config": "dict(out_indices=[2, 5, 8, 11])"}, {}, "blocks 2,5,8,11, .* 3,5,7,11: give blocks=2,5,8,11"),
        ({"config": "dict(mean=[127.5, 127.5, 127.5], std=[58.395, 57.12, 57.375])"}, {}, "--card mean=0.5,0.5,0.5"),
        ({"config": "dict(to_rgb=False)"}, {}, "feeds BGR images"),
        ({}, XCIT, "XCiT"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_does_not_fit_is_refused_and_nothing_is_loaded(published, tmp_path, meta, changes, words):
    file = published("coco_maskrcnn_1x")
    before = {k: v.clone() for k, v in file.model.state_dict().items()}
    path = again(file, tmp_path / "x.pth", meta, **changes)
    with pytest.raises(UserError, match=words) as caught:
        load_finetuned(file.model, path, COCO)
    assert str(caught.value).startswith(f"--eval-only {path}: ")
    assert "\n" not in str(caught.value)
    assert all(torch.equal(v, before[k]) for k, v in file.model.state_dict().items())
