"""VISSL's DINO with a ViT: training checkpoint (`classy_state_dict`, `loss`).

Source: facebookresearch/vissl, vissl/hooks/log_hooks.py, vissl/losses/dino_loss.py, vissl/models/trunks/
vision_transformer.py, configs/config/benchmark/nearest_neighbor/models/dino/deit_s16.yaml. Downstream uses the teacher,
which lies in the loss, twice; the trunk of `base_model`, where VISSL's other methods have theirs, is the student.
Positions: one scale factor sqrt(patches/stored) for both sides, so square grids only; there it is a resize by size.
"""

from . import IMAGENET, drop, is_dino, prefix_of, vit

CLASSY = "classy_state_dict."
NETWORKS = {
    "teacher": ("loss.momentum_teacher.trunk.", f"{CLASSY}loss.momentum_teacher.trunk."),
    "student": (f"{CLASSY}base_model.model.trunk.",),
}
ROLES = {prefix: role for role, prefixes in NETWORKS.items() for prefix in prefixes}
BESIDE = {f"{prefix.removesuffix('trunk.')}heads.": "head" for prefix in ROLES}
BESIDE |= {"loss.center": "loss", f"{CLASSY}loss.center": "loss", f"{CLASSY}optimizer.": "optimizer"}
ALWAYS = {"qkv_bias": True}


def claims(shapes, meta) -> int:
    return 3 if prefix_of(shapes, NETWORKS, is_dino) else 0


def convert(state, meta):
    prefix = state.pick(NETWORKS, is_dino)
    dropped = drop(state, BESIDE)
    for other, role in ROLES.items():
        if other != prefix:
            dropped |= drop(state, {other: "copy" if role == ROLES[prefix] else role})
    return vit(state, prefix, dropped, pos_resize="square", **IMAGENET)
