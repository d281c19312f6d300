"""MAE: released encoder (`model`), training checkpoint with decoder, or the encoder alone.

Source: facebookresearch/mae, models_mae.py, util/pos_embed.py, util/misc.py (save_model). Positions are fixed
sine-cosine ones and stored, the column in the first half. The official code resizes them for square grids only.
Training checkpoints with decoder are unverified: no file of them was at hand.
"""

from ...pretrain.common.card import IMAGENET_MEAN, IMAGENET_STD
from ...pretrain.common.shapes import vit_card
from ..checkpoints.state import Mismatch
from . import _sincos, below, drop, find, fits, is_dino, take

PREFIXES = ("model.", "")
DECODER = {f"decoder_{n}": "decoder" for n in ("pos_embed", "embed.", "blocks.", "norm.", "pred.")}
BESIDE = DECODER | {"mask_token": "mask token"}
ALWAYS = {"qkv_bias": True}


def claims(shapes, meta) -> int:
    prefix = find(shapes, PREFIXES, is_dino)
    if prefix is None or not fits(names := below(shapes, prefix), tuple(BESIDE)):
        return 0
    if "decoder_pos_embed" in names:
        return 3
    return 2 if prefix and "mask_token" not in names else int(fits(names))


def convert(state, meta):
    prefix = state.pick({None: PREFIXES}, is_dino)
    dropped = drop(state, {prefix + name: why for name, why in BESIDE.items()})
    weights, shapes = take(state, prefix, dropped)
    kind = _sincos.order(weights["pos_embed"])
    if kind != "columns":
        found = "MoCo v3's" if kind else "learned"
        raise Mismatch(f"its positions are {found}, not the fixed ones that MAE stores")
    card = vit_card(shapes, pos_resize="square", mean=IMAGENET_MEAN, std=IMAGENET_STD)
    return weights, card.override({"pos": f"sincos {card.grid}x{card.grid}, stored"}), dropped
