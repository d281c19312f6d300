"""iBOT's recipes (bytedance/ibot da316d8, evaluation/): their values, layer decay, positions and final norm."""

import pytest
import torch
import torch.nn.functional as F

from mm_building import CARDS, CONFIGS, build, built, configured, mm, optimiser
from selfpatch_bench.benchmarks.mm import recipe

pytestmark = mm
COCO, ADE = ("coco_cascade_ibot_small_1x", "coco_cascade_ibot_base_1x"), (
    "ade20k_upernet_ibot_small_160k", "ade20k_upernet_ibot_base_160k",
)  # fmt: skip
# batch, images per GPU, learning rate, layer decay, drop path
VALUES = dict(
    zip(
        (*COCO, *ADE),
        [(32, 4, 1e-4, 0.8, 0.1), (16, 2, 1e-4, 0.75, 0.2), (16, 4, 3e-5, 0.9, 0.1), (16, 2, 8e-5, 0.65, 0.1)],
        strict=True,
    )
)


@pytest.mark.parametrize("name", VALUES)
def test_values(name):
    cfg, effective = configured(name, world=4 if name == ADE[0] else 8)
    optimizer, net = cfg.optim_wrapper.optimizer, cfg.model.backbone
    found = effective["batch"], effective["per_gpu"], optimizer.lr, cfg.optim_wrapper.paramwise_cfg.layer_decay_rate
    assert (*found, net.drop_path) == VALUES[name]
    assert (optimizer.type, optimizer.weight_decay, effective["amp"], effective["norm"]) == (
        "AdamW", 0.05, "fp16", "SyncBN",
    )  # fmt: skip
    assert (effective["blocks"], effective["accumulate"]) == ([3, 5, 7, 11], 1)
    warm, rest = cfg.param_scheduler
    if name in COCO:
        assert (warm.start_factor, warm.end, rest.milestones, cfg.train_cfg.max_epochs) == (0.001, 501, [8, 11], 12)
        assert (effective["pos_rule"], net.get("out_norm", False)) == ("dino", False)
        assert net.store_size == ((800, 1008) if name == COCO[0] else (672, 1092))
    else:
        assert (warm.start_factor, warm.end, rest.power, rest.end) == (1e-6, 1501, 1.0, 160001)
        assert (effective["pos_rule"], net.out_norm) == ("size", True)
        assert cfg.model.decode_head.channels == (384 if name == ADE[0] else 768)
        assert cfg.model.test_cfg == {"mode": "slide", "crop_size": (512, 512), "stride": (341, 341)}
    declared = recipe.read(CONFIGS / f"{name}.py")
    kind = "cascade_mask_rcnn_vit_1x"
    assert set(declared.published) == (
        {("coco_det", kind), ("coco_seg", kind)} if name in COCO else {("ade20k", "upernet_160k")}
    )


def test_the_cascade_is_ibots():
    _, model = built(COCO[1])
    stages = model.roi_head.bbox_head
    assert [tuple(s.bbox_coder.stds) for s in stages] == [
        (0.1, 0.1, 0.2, 0.2), (0.05, 0.05, 0.1, 0.1), (0.033, 0.033, 0.067, 0.067),
    ]  # fmt: skip
    for stage in stages:
        assert (len(stage.shared_convs), len(stage.shared_fcs), stage.num_classes) == (4, 1, 80)
        assert (stage.reg_class_agnostic, stage.reg_decoded_bbox) == (False, True)
        assert (type(stage.loss_bbox).__name__, stage.loss_bbox.loss_weight) == ("GIoULoss", 10.0)
        assert all(isinstance(conv.bn, torch.nn.BatchNorm2d) for conv in stage.shared_convs)  # SyncBN on GPUs
    assert [sampler.pos_iou_thr for sampler in model.roi_head.bbox_assigner] == [0.5, 0.6, 0.7]
    assert model.train_cfg.rpn_proposal.max_per_img == 2000
    assert [s[0] for s in model.rpn_head.prior_generator.strides] == [4, 8, 16, 32, 64]
    cfg, _ = configured(COCO[1], card=CARDS["vit"].override({"patch": 14}))
    assert list(cfg.model.roi_head.bbox_roi_extractor.featmap_strides) == [3.5, 7, 14, 28]


def test_layer_decay():
    """By hand from the official rule, with 0.65^13 = 0.00369720589, 0.65^12 = 0.00568800906, 0.65^6 = 0.0754188906."""
    cfg, model = built(ADE[1])
    optimizer, vit = optimiser(cfg, model).optimizer, "backbone.encoder.vit"
    groups = {id(p): (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    found = {n: groups[id(p)] for n, p in model.named_parameters()}
    assert sum(len(g["params"]) for g in optimizer.param_groups) == len(found)
    assert len(optimizer.param_groups) == 28  # 14 layers, with decay and without
    table = {
        f"{vit}.pos_embed": (0.00369720589, 0.05),  # no vector, and so decayed
        f"{vit}.cls_token": (0.00369720589, 0.05),
        f"{vit}.patch_embed.proj.weight": (0.00369720589, 0.05),
        f"{vit}.patch_embed.proj.bias": (0.00369720589, 0.0),
        f"{vit}.blocks.0.attn.qkv.weight": (0.00568800906, 0.05),
        f"{vit}.blocks.0.norm1.weight": (0.00568800906, 0.0),
        f"{vit}.blocks.6.mlp.fc1.bias": (0.0754188906, 0.0),
        f"{vit}.blocks.11.mlp.fc2.weight": (0.65, 0.05),
        f"{vit}.norm.weight": (1.0, 0.0),
        "backbone.fpn1.0.weight": (1.0, 0.05),
        "backbone.fpn1.0.bias": (1.0, 0.0),
        "backbone.fpn1.1.weight": (1.0, 0.0),
        "decode_head.conv_seg.weight": (1.0, 0.05),
        "auxiliary_head.convs.0.bn.weight": (1.0, 0.0),
    }
    for name, (scale, decay) in table.items():
        assert found[name] == (pytest.approx(8e-5 * scale), decay), name


def vit_backbone(card=CARDS["vit"], **more):
    build()
    from selfpatch_bench.benchmarks.mm.backbones import TimmViT

    torch.manual_seed(0)
    return TimmViT(card, norm_cfg={"type": "BN"}, rescale=False, **more).eval()


def test_stored_positions_that_are_no_square():
    """14 x 14 -> 4 x 6 by size as the weights are loaded; from those by DINO's scale rule for other pictures."""
    net = vit_backbone(pos_resize="dino", store_size=(64, 96))
    first = vit_backbone().encoder.vit.pos_embed  # the same seed
    grid = first[:, 1:].unflatten(1, (14, 14)).permute(0, 3, 1, 2)
    stored = F.interpolate(grid, size=(4, 6), mode="bicubic", align_corners=False)
    assert torch.equal(net.encoder.vit.pos_embed[:, 1:], stored.flatten(2).mT)
    assert torch.equal(net.encoder.vit.pos_embed[:, :1], first[:, :1])
    assert net.encoder.vit.pos_embed.requires_grad
    for h, w in ((4, 6), (5, 4), (6, 4), (9, 13)):
        images = torch.randn(1, 3, 16 * h, 16 * w)
        with torch.no_grad():
            found = net.encoder.embed(images)[:, 1:] - net.encoder.vit.patch_embed.proj(images).flatten(2).mT
            want = stored
            if (h, w) != (4, 6):
                want = F.interpolate(stored, scale_factor=((h + 0.1) / 4, (w + 0.1) / 6), mode="bicubic")
        assert torch.allclose(found, want.flatten(2).mT, atol=1e-5)


def test_maps_through_the_final_norm():
    images = torch.randn(1, 3, 64, 64)
    net = vit_backbone(out_norm=True)
    torch.nn.init.normal_(net.encoder.vit.norm.weight)
    with torch.no_grad():
        for found, raw in zip(net(images), net.tokens(images), strict=True):
            want = F.layer_norm(raw[:, 1:], (48,), net.encoder.vit.norm.weight, net.encoder.vit.norm.bias, 1e-6)
            assert torch.equal(found.flatten(2).mT, want)
    new = vit_backbone(CARDS["vit"].override({"final_norm": False}), out_norm=True).encoder.vit.norm
    assert (new.weight == 1).all()
    assert (new.bias == 0).all()
    assert isinstance(vit_backbone().encoder.vit.norm, torch.nn.Identity)
