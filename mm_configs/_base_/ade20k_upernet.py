# UperNet on ADE20K with 150 classes: what its recipes share. Model, pipelines (512 x 512 crops) and
# loop are mmseg's; AdamW, and poly with warm-up, as in Swin's own code and in XCiT's.
_base_ = [
    "mmseg::_base_/models/upernet_r50.py",
    "mmseg::_base_/datasets/ade20k.py",
    "mmseg::_base_/schedules/schedule_160k.py",
    "mmseg::_base_/default_runtime.py",
]

model = dict(
    # pictures smaller than the crop are padded after normalisation, their labels with 255 (ignored)
    data_preprocessor=dict(size=(512, 512)),
    pretrained=None,
    decode_head=dict(num_classes=150),
    auxiliary_head=dict(num_classes=150),
)
val_evaluator = dict(_delete_=True, type="SelfpatchIoUMetric", iou_metrics=["mIoU"])
optim_wrapper = dict(
    _delete_=True,
    type="OptimWrapper",
    clip_grad=None,
    constructor="DecayByName",  # a recipe says which names
    optimizer=dict(type="AdamW", lr=None, betas=(0.9, 0.999), weight_decay=0.01),
)
param_scheduler = [
    # mmengine divides by end - begin - 1: these two, multiplied, are mmcv 1's poly with warm-up from iteration 0
    dict(type="LinearLR", start_factor=1e-6, by_epoch=False, begin=0, end=1501),
    dict(type="PolyLR", eta_min=0.0, power=1.0, by_epoch=False, begin=0, end=160001),
]
