# UperNet with a ViT on ADE20K: what iBOT's two recipes share (bytedance/ibot da316d8).
_base_ = ["./ade20k_upernet.py"]

model = dict(
    # card, weights, blocks, positions and the heads' input widths come from the checkpoint (benchmarks/mm/build.py)
    backbone=dict(
        _delete_=True,
        type="TimmViT",
        blocks=None,
        rescale=True,
        drop_path=0.1,
        pos_resize=None,
        img_size=512,  # the positions are stored for pictures of this size
        norm_cfg=dict(type="SyncBN", requires_grad=True),
        out_norm=True,
        with_cp=False,
    ),
    decode_head=dict(in_channels=None),
    auxiliary_head=dict(in_channels=None),
    test_cfg=dict(mode="slide", crop_size=(512, 512), stride=(341, 341)),
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
    # mmengine divides by end - begin - 1: these two, multiplied, are mmcv 1's poly with warm-up from iteration 0
    dict(type="LinearLR", start_factor=1e-6, by_epoch=False, begin=0, end=1501),
    dict(type="PolyLR", eta_min=0.0, power=1.0, by_epoch=False, begin=0, end=160001),
]
