# Mask R-CNN 1x on COCO with a Swin transformer: Swin's own protocol.
#
#   selfpatch run CKPT --task coco_maskrcnn_swin_1x --data /data/coco --gpus 8
#
# Protocol   SwinTransformer/Swin-Transformer-Object-Detection, Mask R-CNN 1x: AdamW 1e-4 for 16 images, decay 0.05,
#            drop path 0.1, DETR's augmentation, mixed precision.
# Hardware   8 GPUs of 16 GB or more (estimated), two images each; fewer GPUs accumulate gradients.
# Time       about 7 to 10 hours for Swin-T on 8 A100s (an estimate from the number of images, not measured).
# Expected   MoBY Swin-T: AP_bb 43.6, AP_mk 39.6; supervised 43.7, 39.8 (MoBY's README).
# Known      every value. mmdet ships another file (drop path 0.2, warm-up 1000), which is not this protocol.
_base_ = ["./_base_/coco_maskrcnn.py"]

harness = dict(
    version=1,
    protocol="coco-maskrcnn-swin-1x",
    family="swin",
    dataset="coco",
    noise=0.3,  # assumed half width of the run-to-run band; not measured here
    published=(("coco_det", "mask_rcnn_swin_fpn_1x"), ("coco_seg", "mask_rcnn_swin_fpn_1x")),
    batch=16,
    per_gpu=2,
    lr=1e-4,
    amp="fp16",
)

model = dict(
    backbone=dict(_delete_=True, type="TimmSwin", drop_path=0.1),
    neck=dict(in_channels=None),
)
optim_wrapper = dict(
    _delete_=True,
    type="OptimWrapper",
    clip_grad=None,
    constructor="DecayByName",
    paramwise_cfg=dict(no_decay=("absolute_pos_embed", "relative_position_bias_table", "norm")),
    optimizer=dict(type="AdamW", lr=harness["lr"], betas=(0.9, 0.999), weight_decay=0.05),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=501),
    dict(type="MultiStepLR", by_epoch=True, begin=0, end=12, milestones=[8, 11], gamma=0.1),
]
