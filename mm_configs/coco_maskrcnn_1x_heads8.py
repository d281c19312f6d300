# Mask R-CNN 1x on COCO with a ViT run with 8 attention heads, as SelfPatch's released config has it.
#
#   selfpatch run CKPT --task coco_maskrcnn_1x_heads8 --data /data/coco --gpus 8
#
# Protocol   coco_maskrcnn_1x with 8 heads instead of the checkpoint's: the released config to the letter
#            (alinlab/SelfPatch 81aef14, detection/configs), where the number is a leftover of XCiT's.
# Hardware   8 GPUs of 16 GB or more (estimated), one image each; fewer GPUs accumulate gradients.
# Time       about 7 to 10 hours for ViT-S/16 on 8 A100s (an estimate from the number of images, not measured).
# Expected   DINO+SelfPatch ViT-S/16: AP_bb 42.1, AP_mk 38.5; DINO 40.8, 37.3, if this is what made them.
# Known      every value. Unknown: whether the published numbers were made with 8 heads or with 6.
_base_ = ["./_base_/coco_maskrcnn_vit.py"]

harness = dict(
    version=1,
    protocol="coco-maskrcnn-vit-1x-heads8",
    family="vit",
    dataset="coco",
    noise=0.3,  # assumed half width of the run-to-run band; not measured here
    published=(("coco_det", "mask_rcnn_vit_fpn_1x"), ("coco_seg", "mask_rcnn_vit_fpn_1x")),
    batch=8,
    per_gpu=1,
    lr=5e-5,
    blocks=(3, 5, 7, 11),
    heads=8,
    amp="fp16",
)

optim_wrapper = dict(optimizer=dict(lr=harness["lr"]))
