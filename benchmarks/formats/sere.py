"""SERE on iBOT: full training checkpoint, or an extracted backbone. Unverified: no file of it was at hand.

Source: MCG-NKU/SERE e20f37f, main_sere.py, models/vision_transformer.py. Both networks are stored with `module.`; their
backbones hold relation heads (`pixel_sere`, `channel_sere`, and `*_local` ones), which the released backbones may still
have. Without them a backbone is one of iBOT's, and the two readings agree. Downstream: the teacher, as in iBOT.
"""

from . import alone_vit, below, fits, is_dino, prefix_of
from .dino import read
from .ibot import ALWAYS, HEADS, MASK, NETWORKS  # noqa: F401

RELATIONS = dict.fromkeys(("pixel_sere.", "channel_sere.", "pixel_sere_local.", "channel_sere_local."), "relation head")


def claims(shapes, meta) -> int:
    prefix = prefix_of(shapes, NETWORKS, is_dino)
    prefix = alone_vit(shapes, also=RELATIONS) if prefix is None else prefix
    if prefix is None or not fits(below(shapes, prefix), MASK | RELATIONS | HEADS):
        return 0
    if any(part in f".{k}" for k in shapes for part in (".pixel_sere", ".channel_sere")):
        return 3
    return int(alone_vit(shapes) is not None)


def convert(state, meta):
    return read(state, NETWORKS, HEADS, MASK | RELATIONS)
