# The ViT of the coco_* recipes: SelfPatch's released detection config, in mmdet 3's words.
_base_ = ["./coco_maskrcnn.py"]

model = dict(
    # card, weights, blocks and the FPN's input widths come from the checkpoint (benchmarks/mm/build.py)
    backbone=dict(
        _delete_=True,
        type="TimmViT",
        blocks=None,
        rescale=True,
        drop_path=0.05,
        pos_resize=None,
        norm_cfg=dict(type="SyncBN", requires_grad=True),
        with_cp=False,
        norm_names=("norm1", "norm2"),
    ),
    neck=dict(in_channels=None),
)
optim_wrapper = dict(
    _delete_=True,
    type="OptimWrapper",
    clip_grad=None,
    constructor="DecayByName",
    paramwise_cfg=dict(no_decay=("pos_embed", "cls_token", "norm")),
    optimizer=dict(type="AdamW", lr=None, betas=(0.9, 0.999), weight_decay=0.05),
)
param_scheduler = [
    # mmengine divides by end - begin - 1: with end = 1001 the full rate is reached at iteration 1000, as in mmcv 1
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=1001),
    dict(type="MultiStepLR", by_epoch=True, begin=0, end=12, milestones=[8, 11], gamma=0.1),
]
