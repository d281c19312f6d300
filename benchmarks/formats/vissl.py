"""VISSL's DINO with a ViT: training checkpoint (`classy_state_dict`, `loss`).

Source: facebookresearch/vissl, vissl/hooks/log_hooks.py, vissl/losses/dino_loss.py, vissl/models/trunks/
vision_transformer.py, configs/config/benchmark/nearest_neighbor/models/dino/deit_s16.yaml. Downstream uses the teacher,
which lies in the loss, twice; the trunk of `base_model`, where VISSL's other methods have theirs, is the student.
Positions: one scale factor sqrt(patches/stored) for both sides, so square grids only; there it is a resize by size.
"""

from ...pretrain.common.card import IMAGENET_MEAN, IMAGENET_STD
from ...pretrain.common.shapes import vit_card
from . import drop, find, is_dino, take

CLASSY = "classy_state_dict."
NETWORKS = {
    "teacher": ("loss.momentum_teacher.trunk.", f"{CLASSY}loss.momentum_teacher.trunk."),
    "student": (f"{CLASSY}base_model.model.trunk.",),
}

ALWAYS = {"qkv_bias": True}


def claims(shapes, meta) -> int:
    return 3 if find(shapes, [p for prefixes in NETWORKS.values() for p in prefixes], is_dino) else 0


def convert(state, meta):
    prefix = state.pick(NETWORKS, is_dino)
    heads = {f"{p.removesuffix('trunk.')}heads.": "head" for prefixes in NETWORKS.values() for p in prefixes}
    centre = {"loss.center": "loss", f"{CLASSY}loss.center": "loss", f"{CLASSY}optimizer.": "optimizer"}
    dropped = drop(state, heads | centre)
    taken = next(name for name, prefixes in NETWORKS.items() if prefix in prefixes)
    for name, prefixes in NETWORKS.items():
        for other in prefixes:
            if other != prefix:
                dropped |= drop(state, {other: "copy" if name == taken else name})
    weights, shapes = take(state, prefix, dropped)
    return weights, vit_card(shapes, pos_resize="square", mean=IMAGENET_MEAN, std=IMAGENET_STD), dropped
