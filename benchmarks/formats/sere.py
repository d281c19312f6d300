"""SERE on iBOT: full training checkpoint, or an extracted backbone. Unverified: no file of it was at hand.

Source: MCG-NKU/SERE e20f37f, main_sere.py, models/vision_transformer.py. Both networks are stored with `module.`; their
backbones hold relation heads (`pixel_sere`, `channel_sere`, and `*_local` ones), which the released backbones may still
have. Without them a backbone is one of iBOT's, and the two readings agree. Downstream: the teacher, as in iBOT.
"""

from . import below, example_vit, find, fits, is_dino, save_example
from .dino import example_tree, read
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


def example(folder):
    """A tiny full checkpoint."""
    import torch

    relations = {f"{r}projection.0.weight": torch.ones(24) for r in RELATIONS}
    head = {"head.mlp.0.weight": torch.zeros(8, 24), "head.last_layer2.weight_g": torch.ones(4, 1)}
    losses = {"ibot_loss": {"center": torch.zeros(1, 4), "center2": torch.zeros(1, 1, 4)}}
    tree = example_tree(example_vit(), head, losses, student={MASK: torch.ones(1, 24)})
    for side, before in (("student", "module.backbone."), ("teacher", "backbone.")):
        tree[side] |= {before + k: v for k, v in relations.items()}
    tree["teacher"] = {f"module.{k}": v for k, v in tree["teacher"].items()}
    return save_example(folder / "sere.pth", tree, {"heads": 2})
