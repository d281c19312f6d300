"""MoBY: training checkpoint with Swin or DeiT-S, whole or reduced to `model`.

Source: SwinTransformer/Transformer-SSL 4510de1, moby_main.py, utils.py (save_checkpoint, load_pretrained),
models/moby.py. Downstream uses the online encoder. The masks of shifted windows in the file are those of 224x224.
DeiT-S is unverified, for want of a file: timm 0.4.5's vit_deit_small_patch16_224, of 6 heads, which takes 224x224 only.
"""

from ...pretrain.common.shapes import shapes_of, vit_card
from . import VIT_ROOTS
from ._conv import IMAGENET, SWIN, drop, is_swin, own, prefix_of, swin, under, wrapped

NETWORKS = {"online": wrapped("encoder."), "teacher": wrapped("encoder_k.")}
VIT = {"pos_embed", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "cls_token"}
OTHERS = {"projector.": "head", "projector_k.": "head", "predictor.": "head", "queue": "queue"}
ALWAYS = {"qkv_bias": True, "final_norm": True, "patch_norm": True}
NEIGHBOURS = ("encoder_k.", "projector.", "projector_k.", "predictor.", "queue1", "queue2")


def marks_of(keys) -> set[str]:
    """Of a Swin, or of the ViT that it may be in its place."""
    return SWIN if prefix_of(keys, NETWORKS, is_swin) is not None else VIT


def claims(shapes, meta) -> int:
    marks = marks_of(shapes)
    prefix = prefix_of(shapes, NETWORKS, marks.issubset)
    if prefix is None:
        return 0
    root = prefix.removesuffix("encoder.")
    if any(k.startswith(tuple(root + name for name in NEIGHBOURS)) for k in shapes):
        return 3
    return 0


def convert(state, meta):
    marks = marks_of(state)
    prefix = state.pick(NETWORKS, marks.issubset)
    mine = prefix.removesuffix(".").rpartition(".")[2]
    others = OTHERS | {f"{name}.": name for name in ("encoder", "encoder_k") if name != mine}
    reasons = under(prefix.removesuffix(f"{mine}."), others) | {prefix + "head.": "head"}
    if marks is SWIN:
        return swin(state, prefix, reasons, **IMAGENET)
    dropped = drop(state, reasons)
    weights = {name: state[key] for name, key in own(state, prefix, VIT_ROOTS).items() if key not in dropped}
    card = vit_card(shapes_of(weights), pos_resize="stored", **IMAGENET)
    return weights, card.override({"heads": 6} if (card.dim, card.depth) == (384, 12) else {}), dropped
