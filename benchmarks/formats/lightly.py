"""lightly: Lightning checkpoints of its benchmarks with a ViT, or one ViT (MaskedVisionTransformerTIMM).

Source: lightly-ai/lightly, lightly/models/modules/masked_vision_transformer_timm.py, benchmarks/imagenet/vitb16/.
Evaluated is what the module's `forward` uses: `backbone`, which is the teacher where a student lies beside
it (MoCo: the keys'), or else `teacher_backbone` (DINOv2, iBOT). Positions are resized by timm, to square grids.
"""

import re

from ...pretrain.common.shapes import shapes_of, vit_card
from . import IMAGENET, below, drop, fits, is_vit, prefix_of, under
from .timm import whole_positions

SIDES = {"teacher_backbone": "teacher", "backbone_momentum": "teacher", "student_backbone": "student"}
SIDES |= {"query_backbone": "student"}
BESIDE = re.compile(
    r"(?:\w+_)?(?:heads?|classifier|decoder|predictor|criterion|loss|koleo|mask_token|memory_bank)(?:_momentum)?"
)
CLASSIFIER = "vit.head."  # of timm, which its benchmarks leave there


def is_lightly(names) -> bool:
    """Do the names hold timm's ViT with a token of masked patches beside it, and nothing else?"""
    network = below(names, "vit.")
    wanted = is_vit(network) and "norm.weight" in network and fits(network, ("head.",))
    return wanted and "mask_token" in names and all(k == "mask_token" or k.startswith("vit.") for k in names)


def networks(names) -> dict:
    """As `State.pick` wants them. `backbone`, where there is one, is evaluated, and is what its companion is not."""
    there = {part for k in names for part in k.split(".")[:2]}
    found = {SIDES[part]: [f"{part}."] for part in SIDES if part in there}  # the teacher first
    if "backbone" in there or not found:
        mine = {(): None, ("teacher",): "student"}.get(tuple(found), "teacher")
        found = {mine: ["backbone.", ""]} | {side: prefixes for side, prefixes in found.items() if side != mine}
    return {name: [f"{top}{p}" for top in ("state_dict.", "") for p in prefixes] for name, prefixes in found.items()}


def claims(shapes, meta) -> int:
    return 3 * (prefix_of(shapes, networks(shapes), is_lightly) is not None)


def convert(state, meta):
    prefix = state.pick(networks(state), is_lightly)
    dropped = drop(state, under(prefix, {"mask_token": "mask token", CLASSIFIER: "head"}))
    home = "state_dict." if prefix.startswith("state_dict.") else ""
    for name, key in state.below(home).items():
        part = name.partition(".")[0]
        if not key.startswith(prefix):
            if BESIDE.fullmatch(part):
                dropped[key] = "head"
            elif part in SIDES or part == "backbone":
                dropped[key] = "the other network"
    weights = {name: state[key] for name, key in state.below(f"{prefix}vit.").items() if key not in dropped}
    weights = whole_positions(weights)
    return weights, vit_card(shapes_of(weights), pos_resize="timm", **IMAGENET), dropped
