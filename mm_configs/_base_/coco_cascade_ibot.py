# Cascade Mask R-CNN with a ViT on COCO: what iBOT's two recipes share (bytedance/ibot da316d8).
_base_ = ["mmdet::_base_/models/cascade-mask-rcnn_r50_fpn.py", "./coco.py"]

model = dict(
    # card, weights, blocks and the FPN's input widths come from the checkpoint (benchmarks/mm/build.py)
    backbone=dict(
        _delete_=True,
        type="TimmViT",
        blocks=None,
        rescale=True,
        drop_path=None,
        pos_resize=None,
        store_size=None,
        norm_cfg=dict(type="SyncBN", requires_grad=True),
        with_cp=False,
    ),
    neck=dict(in_channels=None),
    roi_head=dict(
        bbox_head=[
            dict(
                type="ConvFCBBoxHead",
                num_shared_convs=4,
                num_shared_fcs=1,
                in_channels=256,
                conv_out_channels=256,
                fc_out_channels=1024,
                roi_feat_size=7,
                num_classes=80,
                bbox_coder=dict(
                    type="DeltaXYWHBBoxCoder",
                    target_means=[0.0, 0.0, 0.0, 0.0],
                    target_stds=[centre, centre, size, size],
                ),
                reg_class_agnostic=False,
                reg_decoded_bbox=True,
                norm_cfg=dict(type="SyncBN", requires_grad=True),
                loss_cls=dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=1.0),
                loss_bbox=dict(type="GIoULoss", loss_weight=10.0),
            )
            for centre, size in ((0.1, 0.2), (0.05, 0.1), (0.033, 0.067))
        ]
    ),
)
optim_wrapper = dict(
    _delete_=True,
    type="OptimWrapper",
    clip_grad=None,
    constructor="LayerDecay",
    paramwise_cfg=dict(layer_decay_rate=None),
    optimizer=dict(type="AdamW", lr=None, betas=(0.9, 0.999), weight_decay=0.05),
)
param_scheduler = [
    # mmengine divides by end - begin - 1: with end = 501 the full rate is reached at iteration 500, as in mmcv 1
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=501),
    dict(type="MultiStepLR", by_epoch=True, begin=0, end=12, milestones=[8, 11], gamma=0.1),
]
