"""SERE on iBOT: full training checkpoint, or an extracted backbone. Unverified: no file of it was at hand.

Source: MCG-NKU/SERE e20f37f, main_sere.py, models/vision_transformer.py. Both networks are stored with `module.`; their
backbones hold relation heads (`pixel_sere`, `channel_sere`, and `*_local` ones), which the released backbones may still
have. Without them a backbone is one of iBOT's, and the two readings agree. Downstream: the teacher, as in iBOT.
"""

from . import below, find, fits, is_dino
from .dino import read
from .ibot import FILES, HEADS, MASK, PREFIXES, extracted

RELATIONS = ("pixel_sere.", "channel_sere.", "pixel_sere_local.", "channel_sere_local.")
ALWAYS = {"qkv_bias": True}


def claims(shapes, meta) -> int:
    prefix = find(shapes, PREFIXES, is_dino)
    if prefix is None or not fits(below(shapes, prefix), (MASK, *RELATIONS, *HEADS)):
        return 0
    if any(part in f".{k}" for k in shapes for part in (".pixel_sere", ".channel_sere")):
        return 3
    if prefix in ("state_dict.", ""):
        return 2 * extracted(shapes, meta) if prefix else int(fits(shapes))
    return 0


def convert(state, meta):
    return read(state, FILES, HEADS, {MASK: "mask token"} | dict.fromkeys(RELATIONS, "relation head"))
