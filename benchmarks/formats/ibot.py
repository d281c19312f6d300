"""iBOT: full training checkpoint, or the backbone that its script extracts (`state_dict`), ViT only.

Source: bytedance/ibot da316d8, main_ibot.py (save_dict), extract_backbone_weights.py, models/vision_transformer.py,
models/head.py. Downstream uses the teacher; the ImageNet-22k models publish the student, whose backbone also has the
token of masked patches.
"""

from . import alone_vit, below, fits, is_dino, prefix_of
from .dino import NETWORKS as DINO
from .dino import read

NETWORKS = DINO | {None: ("state_dict.", "backbone.", "")}
HEADS = dict.fromkeys(("head.mlp.", "head.last_layer.", "head.last_layer2."), "head")
MASK = {"masked_embed": "mask token"}
ALWAYS = {"qkv_bias": True}


def claims(shapes, meta) -> int:
    if alone_vit(shapes, also=MASK) is not None:
        return 3 if any(k.endswith("masked_embed") for k in shapes) else 1
    prefix = prefix_of(shapes, NETWORKS, is_dino)
    if prefix is None or not fits(below(shapes, prefix), MASK | HEADS):
        return 0
    if "ibot_loss.center2" in shapes or any(k.endswith("masked_embed") for k in shapes):
        return 3
    return 2 if any(".head.last_layer2." in f".{k}" for k in shapes) else 0


def convert(state, meta):
    return read(state, NETWORKS, HEADS, MASK)
