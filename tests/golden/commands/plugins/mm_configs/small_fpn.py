# Semantic FPN at a reduced size: an mm recipe of a user's own.
_base_ = [
    "mmseg::_base_/models/fpn_r50.py",
    "mmseg::_base_/datasets/ade20k.py",
    "mmseg::_base_/schedules/schedule_40k.py",
    "mmseg::_base_/default_runtime.py",
]

harness = dict(
    version=2,
    protocol="small-fpn",
    family="vit",
    dataset="ade20k",
    metrics=("mIoU", "aAcc"),
    noise=dict(mIoU=2.0),
    published=(),
    batch=3,
    per_gpu=3,
    lr=3e-3,
    blocks=(2, 5, 8, 11),
    pos_resize="size",
    amp="off",
)

model = dict(
    data_preprocessor=dict(size=(64, 64)),
    pretrained=None,
    backbone=dict(
        _delete_=True,
        type="TimmViT",
        card=None,
        weights=None,
        blocks=None,
        rescale=False,
        drop_path=0.1,
        pos_resize=None,
        img_size=64,
        norm_cfg=dict(type="SyncBN", requires_grad=True),
        with_cp=False,
    ),
    neck=dict(in_channels=None, out_channels=16),
    decode_head=dict(in_channels=[16, 16, 16, 16], channels=16, num_classes=150),
)
val_evaluator = dict(_delete_=True, type="SelfpatchIoUMetric", iou_metrics=["mIoU"])
optim_wrapper = dict(
    _delete_=True,
    type="OptimWrapper",
    clip_grad=None,
    constructor="DecayByName",
    paramwise_cfg=dict(no_decay=("pos_embed", "cls_token", "norm")),
    optimizer=dict(type="AdamW", lr=harness["lr"], betas=(0.9, 0.999), weight_decay=0.01),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-6, by_epoch=False, begin=0, end=1501),
    dict(type="PolyLR", eta_min=0.0, power=1.0, by_epoch=False, begin=0, end=40001),
]
