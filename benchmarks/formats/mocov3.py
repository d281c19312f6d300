"""MoCo v3 with a ViT: training checkpoint, or its backbone as `convert_to_deit.py` writes it (`model`).

Source: facebookresearch/moco-v3, main_moco.py (save_checkpoint), moco/builder.py, vits.py, main_lincls.py,
convert_to_deit.py. Downstream uses the online network. Its ViT-S has 12 heads. Positions are fixed sine-cosine ones
and stored, the row in the first half; the official code takes the stored grid only. The converted form is unverified:
no file of it was at hand.
"""

from . import IMAGENET, alone_vit, and_alone, below, drop, fits, is_dino, prefix_of, under, vit
from ._sincos import check_order

NETWORKS = {
    "online": ("state_dict.base_encoder.", "base_encoder."),
    "teacher": ("state_dict.momentum_encoder.", "momentum_encoder."),
    None: ("model.", ""),
}
BY_VALUES = True
HEADS = {384: ("vit_small", 12), 768: ("vit_base", 12)}  # width -> `arch`, heads (vits.py)
ALWAYS = {"qkv_bias": True}


def claims(shapes, meta) -> int:
    prefix = prefix_of(shapes, NETWORKS, is_dino)
    if prefix and prefix.endswith("_encoder."):
        return 3 * fits(below(shapes, prefix), ("head.",))
    return int(alone_vit(shapes) is not None)


def convert(state, meta):
    prefix = state.pick(and_alone(NETWORKS, alone_vit(state)), is_dino)
    dropped = {}
    for mine, other in (("base", "momentum"), ("momentum", "base")):
        if prefix.endswith(f"{mine}_encoder."):
            beside = {"predictor.": "predictor", f"{other}_encoder.": f"{other} encoder"}
            beside = under(prefix.removesuffix(f"{mine}_encoder."), beside)
            dropped = drop(state, under(prefix, {"head.": "projector"}) | beside)
    check_order(state[f"{prefix}pos_embed"], "rows")
    weights, card, dropped = vit(state, prefix, dropped, pos_resize="stored", **IMAGENET)
    facts = {"pos": f"sincos {card.grid}x{card.grid}, stored"}
    arch, heads = HEADS.get(card.dim, (None, None))
    if heads and meta.get("arch") == arch:
        facts["heads"] = heads
    return weights, card.override(facts), dropped
