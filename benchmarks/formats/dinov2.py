"""DINOv2, with or without registers: released backbone, or a training checkpoint. Unverified: no file was at hand.

Source: facebookresearch/dinov2, dinov2/models/vision_transformer.py, dinov2/hub/backbones.py, dinov2/layers/.
Positions: DINO's scale rule without registers; by size with antialiasing with them (the hub's arguments). ViT-g has a
SwiGLU (w12, w3). Trained in chunks for FSDP, blocks are called `blocks.CHUNK.I`. Downstream uses the teacher.
"""

import re

from ...pretrain.common.card import IMAGENET_MEAN, IMAGENET_STD
from ...pretrain.common.shapes import vit_card
from . import drop, fits, is_vit

NETWORKS = {
    "teacher": ("teacher.backbone.", "teacher."),
    "student": ("student.backbone.", "student."),
    None: ("backbone.", ""),
}
MASK = "mask_token"
HEADS = ("dino_head.", "ibot_head.", "head.")
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
    return is_vit(keys) and {"cls_token", "norm.weight"} <= keys and "blocks.0.ls1.gamma" in keys


def claims(shapes, meta) -> int:
    for prefixes in NETWORKS.values():
        for prefix in prefixes:
            names = [k.removeprefix(prefix) for k in shapes if k.startswith(prefix)]
            if not is_dinov2(names):
                continue
            own = MASK in names or "register_tokens" in names or any(n.startswith("dino_head.") for n in names)
            if not fits([timm_name(k) for k in names], (MASK, *HEADS)):
                return 0
            heads = any(".dino_head." in f".{k}" for k in shapes)
            return 3 if own or heads else 2 if prefix.startswith(("teacher", "student")) else 0
    return 0


def convert(state, meta):
    prefix = state.pick(NETWORKS, is_dinov2)
    side = prefix.partition(".")[0] + "." if prefix.startswith(("teacher.", "student.")) else ""
    reasons = {prefix + MASK: "mask token"} | {where + h: "head" for where in (side, prefix) for h in HEADS}
    if side:
        other = "student." if side == "teacher." else "teacher."
        reasons |= {other: other.rstrip("."), "dino_loss.": "loss", "ibot_patch_loss.": "loss", "koleo_loss.": "loss"}
    dropped = drop(state, reasons)
    weights = {timm_name(n): state[key] for n, key in state.below(prefix).items() if key not in dropped}
    shapes = {k: tuple(v.shape) for k, v in weights.items()}
    rule = "timm" if "reg_token" in weights else "dino"
    return weights, vit_card(shapes, pos_resize=rule, mean=IMAGENET_MEAN, std=IMAGENET_STD), dropped
