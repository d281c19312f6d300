"""MoBY: training checkpoint with Swin or DeiT-S, whole or reduced to `model`.

Source: SwinTransformer/Transformer-SSL 4510de1, moby_main.py, utils.py (save_checkpoint, load_pretrained),
models/moby.py. Downstream uses the online encoder. The masks of shifted windows in the file are those of 224x224.
DeiT-S is unverified, for want of a file: timm 0.4.5's vit_deit_small_patch16_224, of 6 heads, which takes 224x224 only.
"""

from ...pretrain.common.shapes import vit_card
from . import VIT_ROOTS
from ._conv import IMAGENET, SWIN, drop, find, own, pick, swin

NETWORKS = {"online": ("encoder.",), "teacher": ("encoder_k.",)}
VIT = {"pos_embed", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "cls_token"}
OTHERS = {"projector.": "head", "projector_k.": "head", "predictor.": "head", "queue": "queue"}
ALWAYS = {"qkv_bias": True, "final_norm": True, "patch_norm": True}
NEIGHBOURS = ("encoder_k.", "projector.", "projector_k.", "predictor.", "queue1", "queue2")


def claims(shapes, meta) -> int:
    is_swin = find(shapes, SWIN, NETWORKS) is not None
    prefix = find(shapes, SWIN if is_swin else VIT, NETWORKS)
    if prefix is None:
        return 0
    root = prefix.removesuffix("encoder.")
    if any(k.startswith(tuple(root + name for name in NEIGHBOURS)) for k in shapes):
        return 3
    return 2 if is_swin else 0


def convert(state, meta):
    is_swin = find(state, SWIN, NETWORKS) is not None
    prefix = pick(state, SWIN if is_swin else VIT, NETWORKS)
    mine = prefix.removesuffix(".").rpartition(".")[2]
    root = prefix.removesuffix(f"{mine}.")
    reasons = {root + name: why for name, why in OTHERS.items()}
    reasons |= {f"{root}{name}.": name for name in ("encoder", "encoder_k") if name != mine}
    reasons |= {prefix + "head.": "head"}
    dropped = drop(state, reasons)
    if is_swin:
        return swin(state, prefix, dropped, **IMAGENET)
    weights = {name: state[key] for name, key in own(state, prefix, VIT_ROOTS).items() if key not in dropped}
    card = vit_card({k: tuple(v.shape) for k, v in weights.items()}, pos_resize="stored", **IMAGENET)
    return weights, card.override({"heads": 6} if (card.dim, card.depth) == (384, 12) else {}), dropped
