"""MSN: training checkpoint, as its authors released it too.

Source: facebookresearch/msn, src/msn_train.py (save_checkpoint, init_model), src/deit.py, src/data_manager.py.
Downstream uses the target encoder, without its projection head `fc`. Positions are resized by one factor for both
sides, so that the official code takes square grids only.
"""

from . import IMAGENET, below, drop, fits, is_dino, prefix_of, under, vit

NETWORKS = {"teacher": ("target_encoder.",), "online": ("encoder.",)}
HEADS = {"fc.": "projector", "pred.": "predictor"}
ALWAYS = {"qkv_bias": True}


def claims(shapes, meta) -> int:
    prefix = prefix_of(shapes, NETWORKS, is_dino)
    if prefix is None or not fits(below(shapes, prefix), HEADS):
        return 0
    return 3 if "prototypes" in shapes else 2 if f"{prefix}fc.fc1.weight" in shapes else 0


def convert(state, meta):
    prefix = state.pick(NETWORKS, is_dino)
    others = {p: "encoder" if p == "encoder." else "target encoder" for (p,) in NETWORKS.values() if p != prefix}
    dropped = drop(state, under(prefix, HEADS) | {"prototypes": "prototypes"} | others)
    return vit(state, prefix, dropped, pos_resize="square", **IMAGENET)
