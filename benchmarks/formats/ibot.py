"""iBOT: full training checkpoint, or the backbone that its script extracts (`state_dict`), ViT only.

Source: bytedance/ibot da316d8, main_ibot.py (save_dict), extract_backbone_weights.py, models/vision_transformer.py,
models/head.py. Downstream uses the teacher; the ImageNet-22k models publish the student, whose backbone also has the
token of masked patches.
"""

from . import below, find, fits, is_dino
from .dino import NETWORKS, read

FILES = NETWORKS | {None: ("state_dict.", "backbone.", "")}
PREFIXES = tuple(p for prefixes in FILES.values() for p in prefixes)
HEADS = {"head.mlp.": "head", "head.last_layer.": "head", "head.last_layer2.": "head"}
MASK = "masked_embed"
ALWAYS = {"qkv_bias": True}


def claims(shapes, meta) -> int:
    prefix = find(shapes, PREFIXES, is_dino)
    if prefix is None or not fits(below(shapes, prefix), (MASK, *HEADS)):
        return 0
    if "ibot_loss.center2" in shapes or any(k.endswith(MASK) for k in shapes):
        return 3
    if prefix in ("state_dict.", ""):
        return 2 * extracted(shapes, meta) if prefix else int(fits(shapes))
    return 2 if any(".head.last_layer2." in f".{k}" for k in shapes) else 0


def extracted(shapes, meta) -> bool:
    """Is it what the script extracts: nothing but a backbone in `state_dict`? A trainer's file has more."""
    return fits(below(shapes, "state_dict.")) and not meta.keys() & {"arch", "epoch", "epochs", "meta"}


def convert(state, meta):
    return read(state, FILES, HEADS, {MASK: "mask token"})
