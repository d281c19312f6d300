# UperNet on ADE20K with 150 classes: what its recipes share. Model, pipelines (512 x 512 crops) and
# loop are mmseg's.
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
