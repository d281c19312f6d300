"""MoCo v3 with a ViT: training checkpoint, or its backbone as `convert_to_deit.py` writes it (`model`).

Source: facebookresearch/moco-v3, main_moco.py (save_checkpoint), moco/builder.py, vits.py, main_lincls.py,
convert_to_deit.py. Downstream uses the online network. Its ViT-S has 12 heads. Positions are fixed sine-cosine ones
and stored, the row in the first half; the official code takes the stored grid only. The converted form is unverified:
no file of it was at hand.
"""

from ...pretrain.common.card import IMAGENET_MEAN, IMAGENET_STD
from ...pretrain.common.shapes import vit_card
from ..checkpoints.state import Mismatch
from . import _sincos, below, drop, find, fits, is_dino, take

NETWORKS = {
    "online": ("state_dict.base_encoder.", "base_encoder."),
    "teacher": ("state_dict.momentum_encoder.", "momentum_encoder."),
    None: ("model.", ""),
}
HEADS = {384: ("vit_small", 12), 768: ("vit_base", 12)}  # width -> `arch`, heads (vits.py)
ALWAYS = {"qkv_bias": True}


def claims(shapes, meta) -> int:
    prefix = find(shapes, [p for prefixes in NETWORKS.values() for p in prefixes], is_dino)
    if prefix is None or not fits(names := below(shapes, prefix), ("head.",)):
        return 0
    if prefix.endswith("_encoder."):
        return 3
    return (2 if prefix else 1) if fits(names) else 0


def convert(state, meta):
    prefix = state.pick(NETWORKS, is_dino)
    around = prefix.removesuffix("base_encoder.").removesuffix("momentum_encoder.")
    dropped = {}
    if around != prefix:
        reasons = {prefix + "head.": "projector", around + "predictor.": "predictor"}
        reasons |= {around + f"{n}_encoder.": f"{n} encoder" for n in ("base", "momentum") if f"{n}_enc" not in prefix}
        dropped = drop(state, reasons)
    weights, shapes = take(state, prefix, dropped)
    kind = _sincos.order(weights["pos_embed"])
    if kind != "rows":
        raise Mismatch(f"its positions are {'MAEs' if kind else 'learned'}, not the fixed ones that MoCo v3 stores")
    card = vit_card(shapes, pos_resize="stored", mean=IMAGENET_MEAN, std=IMAGENET_STD)
    facts = {"pos": f"sincos {card.grid}x{card.grid}, stored"}
    arch, heads = HEADS.get(card.dim, (None, None))
    if heads and meta.get("arch") == arch:
        facts["heads"] = heads
    return weights, card.override(facts), dropped
