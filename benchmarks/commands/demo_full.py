"""`selfpatch demo --full`: after the demo, its SelfPatch network and random weights through reduced COCO and ADE20K
recipes on drawn sets, so that the table has all of the poster's columns. Needs the extra `mm`.
"""

from pathlib import Path

from ..run.runner import Options, run_command
from ..synthetic.small_sets import ADE_CLASSES, COCO_CLASSES, make_ade20k, make_coco

SIDE = 128  # pixels of the longer side: pictures of 96 x 128
IMAGES = (48, 16)  # to train on, to evaluate on
# Recorded with every result. Heads of a quarter of the width, few proposals, small pictures, no drop path.
SMALL_COCO = (
    f"classes={len(COCO_CLASSES)}", "workers=0", "batch=4", "per_gpu=4", "warmup=0", "lr=0.001",
    "model.backbone.drop_path=0.0", "model.neck.out_channels=64",
    "model.rpn_head.in_channels=64", "model.rpn_head.feat_channels=64",
    "model.rpn_head.anchor_generator.scales=[4]",
    "model.roi_head.bbox_roi_extractor.out_channels=64", "model.roi_head.mask_roi_extractor.out_channels=64",
    "model.roi_head.bbox_head.in_channels=64", "model.roi_head.bbox_head.fc_out_channels=128",
    "model.roi_head.mask_head.in_channels=64", "model.roi_head.mask_head.conv_out_channels=64",
    "model.roi_head.mask_head.num_convs=1",
    "model.train_cfg.rpn_proposal.nms_pre=200", "model.train_cfg.rpn_proposal.max_per_img=100",
    "model.train_cfg.rcnn.sampler.num=32",
    "model.test_cfg.rpn.nms_pre=200", "model.test_cfg.rpn.max_per_img=100",
    "train_dataloader.dataset.pipeline=[{type: LoadImageFromFile},{type: LoadAnnotations,with_bbox: true,"
    f"with_mask: true}},{{type: Resize,scale: [{SIDE},{SIDE}],keep_ratio: true}},{{type: RandomFlip,prob: 0.5}},"
    "{type: PackDetInputs}]",
    f"val_dataloader.dataset.pipeline.1.scale=[{SIDE},{SIDE}]",
)  # fmt: skip
SMALL_ADE = (
    f"classes={len(ADE_CLASSES)}", "workers=0", "batch=4", "per_gpu=4", "warmup=0", "lr=0.001",
    "model.backbone.drop_path=0.0", "model.data_preprocessor.size=[96,96]",
    f"train_dataloader.dataset.pipeline.2.scale=[{SIDE},{SIDE}]",
    "train_dataloader.dataset.pipeline.3.crop_size=[96,96]",
    f"val_dataloader.dataset.pipeline.1.scale=[{SIDE},{SIDE}]",
)  # fmt: skip
SMALL_FPN = (
    "model.neck.out_channels=64", "model.decode_head.in_channels=[64,64,64,64]", "model.decode_head.channels=32",
)  # fmt: skip
RECIPES = {
    "coco_maskrcnn_1x": (*SMALL_COCO, "epochs=12"),
    "ade20k_semfpn_40k": (*SMALL_ADE, *SMALL_FPN, "iterations=200"),
}


def full(out: Path, models: list[str]) -> int:
    """Fine-tune and evaluate the models by the reduced recipes; -> exit status. What is done is not done again."""
    data = [f"coco={make_coco(out / 'coco', IMAGES, (96, SIDE))}"]
    data += [f"ade20k={make_ade20k(out / 'ade20k', IMAGES, (96, SIDE))}"]
    status = 0
    for task, values in RECIPES.items():
        options = Options(data=data, out=out, device="cpu", own={"pictures": True}, overrides=list(values))
        status |= run_command(models, [task], options)
    return status
