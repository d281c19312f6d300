# UperNet on ADE20K, 160k iterations, with a ViT-B: iBOT's own protocol.
#
#   selfpatch run CKPT --task ade20k_upernet_ibot_base_160k --data /data/ADEChallengeData2016 --gpus 8
#
# Protocol   bytedance/ibot da316d8, evaluation/semantic_segmentation, and the command of evaluation/README.md: AdamW
#            8e-5 for 16 images, decay 0.05, layer decay 0.65, drop path 0.1, poly 1.0 with warm-up 1500, 512 x 512
#            crops, mixed precision; blocks 3, 5, 7, 11 through the final norm and rescale layers; UPerHead 768
#            channels; the test slides a window of 512 by 341.
# Hardware   8 GPUs of 24 GB or more (estimated), two crops each; fewer GPUs accumulate gradients.
# Time       about 20 to 30 hours for ViT-B/16 on 8 A100s (an estimate from the number of crops, not measured).
# Expected   iBOT ViT-B/16: mIoU 50.0; DINO 46.8; supervised 46.6 (paper, table 6).
# Known      every value of the command; the config file says lr 7e-4, which the command replaces.
# Different  apex's O1 is mmengine's fp16 here. A network without a final norm gets a new one, as it would there.
_base_ = ["./_base_/ade20k_upernet_ibot.py"]

harness = dict(
    version=1,
    protocol="ade20k-upernet-ibot-base-160k",
    family="vit",
    dataset="ade20k",
    noise=1.0,  # half width of the run-to-run band, as usually quoted; not measured here
    published=(("ade20k", "upernet_160k"),),
    batch=16,
    per_gpu=2,
    lr=8e-5,
    blocks=(3, 5, 7, 11),
    pos_resize="size",
    amp="fp16",
)

model = dict(decode_head=dict(channels=768))
optim_wrapper = dict(paramwise_cfg=dict(layer_decay_rate=0.65), optimizer=dict(lr=harness["lr"]))
