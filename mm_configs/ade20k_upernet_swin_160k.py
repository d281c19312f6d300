# UperNet on ADE20K, 160k iterations, with a Swin transformer: Swin's own protocol.
#
#   selfpatch run CKPT --task ade20k_upernet_swin_160k --data /data/ADEChallengeData2016 --gpus 8
#
# Protocol   SwinTransformer/Swin-Transformer-Semantic-Segmentation: AdamW 6e-5 for 16 images, decay 0.01, drop path
#            0.3, poly 1.0 with warm-up 1500, 512 x 512 crops, whole-image test, float32.
# Hardware   8 GPUs of 16 GB or more (estimated), two crops each; fewer GPUs accumulate gradients.
# Time       about 12 to 18 hours for Swin-T on 8 A100s (an estimate from the number of crops, not measured).
# Expected   MoBY Swin-T: mIoU 44.06; supervised 44.51 (MoBY's README, single scale). ade20k_upernet_swin_160k_tta
#            evaluates the same model at six scales and flipped.
# Known      every value. Reconstructed: nothing.
_base_ = ["./_base_/ade20k_upernet.py"]

harness = dict(
    version=1,
    protocol="ade20k-upernet-swin-160k",
    family="swin",
    dataset="ade20k",
    noise=1.0,  # half width of the run-to-run band, as usually quoted; not measured here
    published=(("ade20k", "upernet_160k"),),
    batch=16,
    per_gpu=2,
    lr=6e-5,
    amp="off",
)

model = dict(
    backbone=dict(_delete_=True, type="TimmSwin", drop_path=0.3),
    decode_head=dict(in_channels=None),
    auxiliary_head=dict(in_channels=None),
)
optim_wrapper = dict(
    _delete_=True,
    type="OptimWrapper",
    clip_grad=None,
    constructor="DecayByName",
    paramwise_cfg=dict(no_decay=("absolute_pos_embed", "relative_position_bias_table", "norm")),
    optimizer=dict(type="AdamW", lr=harness["lr"], betas=(0.9, 0.999), weight_decay=0.01),
)
param_scheduler = [
    # mmengine divides by end - begin - 1: these two, multiplied, are mmcv 1's poly with warm-up from iteration 0
    dict(type="LinearLR", start_factor=1e-6, by_epoch=False, begin=0, end=1501),
    dict(type="PolyLR", eta_min=0.0, power=1.0, by_epoch=False, begin=0, end=160001),
]
