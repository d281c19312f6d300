"""iBOT with a Swin: full training checkpoint, or a backbone with its token of masked patches.

Source: bytedance/ibot, main_ibot.py (save_dict), models/swin_transformer.py (eps 1e-6), extract_backbone_weights.py,
whose file has bare names without that token, and is read as any Swin's. Downstream uses the teacher. Its code takes
squares only, and decides for pictures of 224 which stages are shifted.
"""

from . import below, prefix_of
from ._conv import IMAGENET, SWIN_PARTS, alone_swin, and_alone, is_swin, swin, under, wrapped
from .dino import NETWORKS as DINO

NETWORKS = {role: wrapped(*prefixes) for role, prefixes in DINO.items() if role}
MASK = {"masked_embed": "mask token"}
HEADS = ("head.mlp.", "head.last_layer.", "head.last_layer2.")
BESIDE = {"ibot_loss.": "loss"}
ALWAYS = {"qkv_bias": True, "final_norm": True, "patch_norm": True}


def claims(shapes, meta) -> int:
    masked = any(k.endswith("masked_embed") for k in shapes)
    if (home := alone_swin(shapes, tuple(MASK))) is not None:
        return 3 * (masked and not home.endswith(("student.backbone.", "teacher.backbone.")))
    prefix = prefix_of(shapes, NETWORKS, is_swin)
    if prefix is None or not all(k.startswith((*SWIN_PARTS, *MASK, *HEADS)) for k in below(shapes, prefix)):
        return 0
    return 3 * (masked or "ibot_loss.center2" in shapes)


def convert(state, meta):
    prefix = state.pick(and_alone(NETWORKS, alone_swin(state, tuple(MASK))), is_swin)
    side = next((name for name in ("teacher.", "student.") if f".{prefix}".rpartition(f".{name}")[1]), "")
    root = prefix.rpartition(side)[0] if side else ""
    beside = dict.fromkeys((f"{side}{name}" for name in HEADS), "head") | BESIDE if side else {}
    beside |= {"teacher.": {"student.": "student"}, "student.": {"teacher.": "teacher"}}.get(side, {})
    return swin(
        state, prefix, under(prefix, MASK) | under(root, beside), norm_eps=1e-6, sizes="padded_fixed", **IMAGENET
    )
