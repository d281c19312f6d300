# UperNet on ADE20K, 160k iterations, with a ViT-S: iBOT's own protocol.
#
#   selfpatch run CKPT --task ade20k_upernet_ibot_small_160k --data /data/ADEChallengeData2016 --gpus 4
#
# Protocol   bytedance/ibot da316d8, evaluation/semantic_segmentation, and the command of evaluation/README.md: AdamW
#            3e-5 for 16 images, decay 0.05, layer decay 0.9, drop path 0.1, poly 1.0 with warm-up 1500, 512 x 512
#            crops, mixed precision; blocks 3, 5, 7, 11 through the final norm and rescale layers; UPerHead 384
#            channels; the test slides a window of 512 by 341.
# Hardware   4 GPUs of 24 GB or more (estimated), four crops each; fewer GPUs accumulate gradients.
# Time       about 12 to 18 hours for ViT-S/16 on 8 A100s (an estimate from the number of crops, not measured).
# Expected   iBOT ViT-S/16: mIoU 45.4; supervised 44.5 (paper, table 6).
# Known      every value.
# Different  apex's O1 is mmengine's fp16 here. A network without a final norm gets a new one, as it would there.
_base_ = ["./_base_/ade20k_upernet_ibot.py"]

harness = dict(
    version=1,
    protocol="ade20k-upernet-ibot-small-160k",
    family="vit",
    dataset="ade20k",
    noise=1.0,  # half width of the run-to-run band, as usually quoted; not measured here
    published=(("ade20k", "upernet_160k"),),
    batch=16,
    per_gpu=4,
    lr=3e-5,
    blocks=(3, 5, 7, 11),
    pos_resize="size",
    amp="fp16",
)

model = dict(decode_head=dict(channels=384))
optim_wrapper = dict(paramwise_cfg=dict(layer_decay_rate=0.9), optimizer=dict(lr=harness["lr"]))
