"""I-JEPA: training checkpoint, as its authors released it too, or a network of it alone.

Source: facebookresearch/ijepa, src/train.py (save_checkpoint), src/models/vision_transformer.py, src/transforms.py.
Downstream uses the target encoder, the mean of its patches: there is no class token. Positions are fixed sine-cosine
ones and stored, the column in the first half; the official code takes the stored grid only.
"""

from . import IMAGENET, alone_vit, and_alone, below, drop, fits, is_vit, prefix_of, vit
from ._sincos import check_order

NETWORKS = {"teacher": ("target_encoder.",), "online": ("encoder.",)}
BY_VALUES = True
PREDICTOR = "predictor.predictor_pos_embed"
ALWAYS = {"qkv_bias": True, "class_token": False, "final_norm": True}


def is_ijepa(keys) -> bool:
    """Do the names hold a ViT with a final norm and no class token?"""
    keys = set(keys)
    return is_vit(keys) and "norm.weight" in keys and "cls_token" not in keys


def claims(shapes, meta) -> int:
    prefix = prefix_of(shapes, NETWORKS, is_ijepa)
    if prefix and PREDICTOR in shapes:
        return 3 * fits(below(shapes, prefix))
    return int(alone_vit(shapes, is_ijepa) is not None)


def convert(state, meta):
    home = alone_vit(state, is_ijepa)
    prefix = state.pick(NETWORKS if home is None else and_alone({}, home), is_ijepa)
    if home is not None:  # names that others have too
        check_order(state[f"{prefix}pos_embed"], "columns", own=0)
    others = {p: "encoder" if p == "encoder." else "target encoder" for (p,) in NETWORKS.values() if p != prefix}
    dropped = drop(state, {"predictor.": "predictor"} | others)
    weights, card, dropped = vit(state, prefix, dropped, pos_resize="stored", **IMAGENET)
    return weights, card.override({"pos": f"sincos {card.grid}x{card.grid}, stored"}), dropped
