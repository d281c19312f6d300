"""DINOv2, with or without registers: released backbone, or a training checkpoint. Unverified: no file was at hand.

Source: facebookresearch/dinov2, dinov2/models/vision_transformer.py, dinov2/hub/backbones.py, dinov2/layers/.
Positions: DINO's scale rule without registers; by size with antialiasing with them (the hub's arguments). ViT-g has a
SwiGLU (w12, w3). Trained in chunks for FSDP, blocks are called `blocks.CHUNK.I`. Downstream uses the teacher.
"""

import re

from . import IMAGENET, below, drop, fits, is_vit, prefix_of, under, vit
from .dino import NETWORKS

MASK = {"mask_token": "mask token"}
HEADS = dict.fromkeys(("dino_head.", "ibot_head.", "head."), "head")
LOSSES = dict.fromkeys(("dino_loss.", "ibot_patch_loss.", "koleo_loss."), "loss")
NAMES = {"register_tokens": "reg_token", ".mlp.w12.": ".mlp.fc1.", ".mlp.w3.": ".mlp.fc2."}
USUAL = {"qkv_bias": True}
CHUNK = re.compile(r"^blocks\.\d+\.(\d+)\.")


def timm_name(name: str) -> str:
    name = CHUNK.sub(r"blocks.\1.", name)
    for old, new in NAMES.items():
        name = name.replace(old, new)
    return name


def is_dinov2(names) -> bool:
    keys = {timm_name(k) for k in names}
    return is_vit(keys) and {"cls_token", "norm.weight", "blocks.0.ls1.gamma"} <= keys


def claims(shapes, meta) -> int:
    prefix = prefix_of(shapes, NETWORKS, is_dinov2)
    if prefix is None or not fits(map(timm_name, names := below(shapes, prefix)), MASK | HEADS):
        return 0
    if {"mask_token", "register_tokens"} & set(names) or any(".dino_head." in f".{k}" for k in shapes):
        return 3
    return 2 if prefix.startswith(("teacher", "student")) else 0


def convert(state, meta):
    prefix = state.pick(NETWORKS, is_dinov2)
    reasons = under(prefix, MASK | HEADS)
    for side, other in (("teacher.", "student."), ("student.", "teacher.")):
        if prefix.startswith(side):
            reasons |= under(side, HEADS) | {other: other.rstrip(".")} | LOSSES
    rule = "timm" if f"{prefix}register_tokens" in state else "dino"
    return vit(state, prefix, drop(state, reasons), timm_name, pos_resize=rule, **IMAGENET)
