# Semantic FPN on ADE20K, 40k iterations, with a ResNet-50.
#
#   selfpatch run CKPT --task ade20k_semfpn_r50_40k --data /data/ADEChallengeData2016 --gpus 8
#
# Protocol   mmseg's Semantic FPN R50 with the plain ResNet stem: SGD 0.01 for 16 images, momentum 0.9, decay 5e-4, poly
#            0.9 to 1e-4, no warm-up; SyncBN, nothing frozen; data and head as in ade20k_semfpn_40k; float32.
# Hardware   8 GPUs of 12 GB or more (estimated), two crops each; fewer GPUs accumulate gradients.
# Time       about 2 to 4 hours on 8 A100s (an estimate from the number of crops, not measured).
# Expected   DetCo: mIoU 37.3, aAcc 78.4, mAcc 46.7; DenseCL 37.2; MoCo-v2 35.8 (poster).
# Known      nothing: the poster names no protocol for its ResNet rows.
# Reconstructed  all of it, from mmseg's own file at the poster's 40k iterations. mmseg's file has ResNetV1c, another
#            stem, which self-supervised weights do not fit.
_base_ = ["./_base_/ade20k_semfpn.py"]

harness = dict(
    version=1,
    protocol="ade20k-semfpn-r50-40k",
    family="resnet",
    dataset="ade20k",
    noise=1.0,  # half width of the run-to-run band, as usually quoted; not measured here
    published=(("ade20k", "semantic_fpn_40k"),),
    batch=16,
    per_gpu=4,
    lr=0.01,
    amp="off",
)

model = dict(
    backbone=dict(
        _delete_=True,
        type="TimmResNet",
        norm_cfg=dict(type="SyncBN", requires_grad=True),
        frozen_stages=-1,
        norm_eval=False,
    ),
    neck=dict(in_channels=None),
)
optim_wrapper = dict(
    _delete_=True,
    type="OptimWrapper",
    clip_grad=None,
    optimizer=dict(type="SGD", lr=harness["lr"], momentum=0.9, weight_decay=5e-4),
)
# mmengine divides by end - begin - 1: with end = 40001 this is mmcv 1's poly
param_scheduler = [dict(type="PolyLR", eta_min=1e-4, power=0.9, by_epoch=False, begin=0, end=40001)]
