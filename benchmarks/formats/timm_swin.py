"""Swin as timm or the official code writes it: a flat state dict, timm's training checkpoint, the official `model`.

Source: huggingface/pytorch-image-models 1.0.31, timm/models/swin_transformer.py; microsoft/Swin-Transformer, models/
swin_transformer.py, utils.py. All of them want ImageNet's mean and std. Unverified: no trained file of it was at hand
(the network is timm's itself, except at sizes of the official code's own rule; see pretrain/model/swin.py).
"""

from ..checkpoints.stated import normalisation_from
from ._conv import ALONE, IMAGENET, SWIN_PARTS, alone_swin, and_alone, is_swin, only, prefix_of, swin

ASSUMED = ("norm_eps",)  # the official code has 1e-5, iBOT's 1e-6
USUAL = {"qkv_bias": True, "final_norm": True, "patch_norm": True}


def claims(shapes, meta) -> int:
    if alone_swin(shapes, ("head.",)) is not None:
        return 1
    prefix = prefix_of(shapes, ALONE, is_swin)
    return 2 * bool(prefix and "arch" in meta and only(shapes, prefix, (*SWIN_PARTS, "head.")))


def convert(state, meta):
    prefix = state.pick(and_alone(ALONE, alone_swin(state, ("head.",))), is_swin)
    reasons = {prefix + "head.": "head"} | ({"state_dict_ema.": "EMA copy"} if prefix else {})
    return swin(state, prefix, reasons, **(normalisation_from(meta) or IMAGENET))
