"""lightly: Lightning checkpoints of its benchmarks with timm's ViT, or one backbone (MaskedVisionTransformerTIMM).

Source: lightly-ai/lightly, lightly/models/modules/masked_vision_transformer_timm.py, benchmarks/imagenet/vitb16/.
Evaluated is what the module's `forward` uses: the teacher, which DINO's calls `backbone` and DINOv2's and iBOT's
`teacher_backbone`. Positions are resized by timm, to square grids.
"""

import re

from ...pretrain.common.shapes import shapes_of, vit_card
from . import IMAGENET, below, drop, fits, is_vit, under
from .timm import whole_positions

OTHERS = ("teacher_backbone.", "student_backbone.")
BESIDE = re.compile(r"(?:\w+_)?(?:heads?|classifier|decoder|predictor|criterion|loss|koleo|mask_token|memory_bank)")
CLASSIFIER = "vit.head."  # of timm, which its benchmarks leave there


def is_lightly(names) -> bool:
    """Do the names hold timm's ViT with a token of masked patches beside it, and nothing else?"""
    network = below(names, "vit.")
    wanted = is_vit(network) and "norm.weight" in network and fits(network, ("head.",))
    return wanted and "mask_token" in names and all(k == "mask_token" or k.startswith("vit.") for k in names)


def networks(names) -> dict:
    """As `State.pick` wants them: `backbone` is the teacher where a student lies beside it."""
    two = any(k.startswith(("state_dict.student_backbone.", "student_backbone.")) for k in names)
    found = {"teacher": ["teacher_backbone."], "student": ["student_backbone."], None: ["backbone.", ""]}
    if two:
        found["teacher"].append(found[None].pop(0))
    return {name: [f"{top}{p}" for top in ("state_dict.", "") for p in prefixes] for name, prefixes in found.items()}


def claims(shapes, meta) -> int:
    prefixes = (prefix for choices in networks(shapes).values() for prefix in choices)
    return 3 * any(is_lightly(below(shapes, prefix)) for prefix in prefixes)


def convert(state, meta):
    prefix = state.pick(networks(state), is_lightly)
    dropped = drop(state, under(prefix, {"mask_token": "mask token", CLASSIFIER: "head"}))
    home = "state_dict." if prefix.startswith("state_dict.") else ""
    for name, key in state.below(home).items():
        part = name.partition(".")[0]
        if not key.startswith(prefix):
            if BESIDE.fullmatch(part):
                dropped[key] = "head"
            elif f"{part}." in (*OTHERS, "backbone."):
                dropped[key] = "the other network"
    weights = {name: state[key] for name, key in state.below(f"{prefix}vit.").items() if key not in dropped}
    weights = whole_positions(weights)
    return weights, vit_card(shapes_of(weights), pos_resize="timm", **IMAGENET), dropped
