"""MAE: released encoder (`model`), training checkpoint with decoder, or the encoder alone.

Source: facebookresearch/mae, models_mae.py, util/pos_embed.py, util/misc.py (save_model). Positions are fixed
sine-cosine ones and stored, the column in the first half. The official code resizes them for square grids only.
Training checkpoints with decoder are unverified: no file of them was at hand.
"""

from . import IMAGENET, alone_vit, and_alone, below, drop, is_dino, under, vit
from ._sincos import check_order

NETWORKS = {None: ("model.", "")}
BY_VALUES = True
BESIDE = {f"decoder_{n}": "decoder" for n in ("pos_embed", "embed.", "blocks.", "norm.", "pred.")}
BESIDE |= {"mask_token": "mask token"}
ALWAYS = {"qkv_bias": True}


def claims(shapes, meta) -> int:
    prefix = alone_vit(shapes, also=BESIDE)
    if prefix is None:
        return 0
    names = below(shapes, prefix)
    return 3 if "decoder_pos_embed" in names else int("mask_token" not in names)


def convert(state, meta):
    prefix = state.pick(and_alone(NETWORKS, alone_vit(state, also=BESIDE)), is_dino)
    check_order(state[f"{prefix}pos_embed"], "columns")
    weights, card, dropped = vit(state, prefix, drop(state, under(prefix, BESIDE)), pos_resize="square", **IMAGENET)
    return weights, card.override({"pos": f"sincos {card.grid}x{card.grid}, stored"}), dropped
