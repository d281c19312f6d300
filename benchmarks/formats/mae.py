"""MAE: released encoder (`model`), training checkpoint with decoder, or the encoder alone.

Source: facebookresearch/mae, models_mae.py, util/pos_embed.py, util/misc.py (save_model). Positions are fixed
sine-cosine ones and stored, the column in the first half. The official code resizes them for square grids only.
Training checkpoints with decoder are unverified: no file of them was at hand.
"""

from . import IMAGENET, below, drop, fits, is_dino, prefix_of, under, vit
from ._sincos import check_order

NETWORKS = {None: ("model.", "")}
BESIDE = {f"decoder_{n}": "decoder" for n in ("pos_embed", "embed.", "blocks.", "norm.", "pred.")}
BESIDE |= {"mask_token": "mask token"}
ALWAYS = {"qkv_bias": True}


def claims(shapes, meta) -> int:
    prefix = prefix_of(shapes, NETWORKS, is_dino)
    if prefix is None or not fits(names := below(shapes, prefix), BESIDE):
        return 0
    if "decoder_pos_embed" in names:
        return 3
    return 2 if prefix and "mask_token" not in names else int(fits(names))


def convert(state, meta):
    prefix = state.pick(NETWORKS, is_dino)
    check_order(state[f"{prefix}pos_embed"], "columns")
    weights, card, dropped = vit(state, prefix, drop(state, under(prefix, BESIDE)), pos_resize="square", **IMAGENET)
    return weights, card.override({"pos": f"sincos {card.grid}x{card.grid}, stored"}), dropped
