"""timm's VisionTransformer: a flat state dict (.pth, .safetensors), timm's own training checkpoint, DeiT's file.

Source: huggingface/pytorch-image-models 1.0.31, timm/models/vision_transformer.py, deit.py, timm/utils/
checkpoint_saver.py; facebookresearch/deit (`model`). The names say nothing about mean and std: 0.5 for AugReg,
ImageNet's for DeiT and DINO. Of a distilled DeiT the image vector is the mean of class and distillation token, as timm
evaluates it. A classifier says that timm wrote a flat file; under a prefix any trainer may have put it there.
"""

import torch

from ...pretrain.common.shapes import shapes_of, vit_card
from ..checkpoints.stated import architectures, table_in
from . import CLASSIFIER, VIT_ROOTS, alone_vit, and_alone, below, drop, fits, is_vit, prefix_of, under
from ._timm import told

NETWORKS = {None: ("state_dict.", "model.", "")}
HEAD = ("head.", "fc_norm.", "dist_token", "head_dist.")
NORMS = {"norm.weight", "fc_norm.weight"}
EMA = {"state_dict_ema.": "EMA copy", "model_ema.": "EMA copy"}
USUAL = {"qkv_bias": True, "class_token": True}


def is_timm(keys) -> bool:
    return is_vit(keys) and bool(set(keys) & NORMS) and all(k.startswith(VIT_ROOTS + HEAD) for k in keys)


def of_hub(meta) -> bool:
    """Does it come from the hub's repositories of timm?"""
    return "timm" in meta or "pretrained_cfg" in table_in(meta, "config.json")


def claims(shapes, meta) -> int:
    prefix = alone_vit(shapes, is_timm, HEAD)
    within = prefix_of(shapes, NETWORKS, is_timm)
    trained = within == "state_dict." and {"arch", "epoch"} <= meta.keys()
    trained |= within == "model." and str(table_in(meta, "args").get("model")).startswith("deit")
    if prefix is None:
        return 2 * trained
    names = below(shapes, prefix)
    if of_hub(meta) or "dist_token" in names:
        return 3
    return 2 if trained or not fits(names, () if prefix == "" else CLASSIFIER) else 1


def convert(state, meta):
    prefix = state.pick(and_alone(NETWORKS, alone_vit(state, is_timm, HEAD)), is_timm)
    heads = ["head.", "head_dist.", *(["fc_norm."] if {prefix + n for n in NORMS} <= set(state) else [])]
    dropped = drop(state, under(prefix, dict.fromkeys(heads, "head")) | (EMA if prefix else {}))
    weights = {_named(name): state[key] for name, key in state.below(prefix).items() if key not in dropped}
    facts = {"pos_resize": "timm"} | told(state, meta, shapes_of(weights))
    if any(".gamma_1" in key for key in state) and not any(architectures(meta)):
        state.assume("pos")  # RoPE-ViT's have the names of DeiT III, and rotary positions without weights
    if "dist_token" in weights:
        facts["readout"] = "token_pair"
        state.assumed.discard("readout")
    weights = whole_positions(weights)
    return weights, vit_card(shapes_of(weights), **facts), dropped


def _named(name: str) -> str:
    """timm's name of one of DeiT III's own, which has its layer scale without a module around it."""
    return name.replace(".gamma_1", ".ls1.gamma").replace(".gamma_2", ".ls2.gamma")


def whole_positions(weights: dict) -> dict:
    """The same network with a position for the class token and none for the registers, as the encoder has them.

    timm stores positions of patches only (`no_embed_class`), or of patches, class token and registers. A distillation
    token is a register.
    """
    if "dist_token" in weights:
        weights = {"reg_token" if k == "dist_token" else k: v for k, v in weights.items()}
    if any(weights[k].ndim != 3 for k in ("pos_embed", "reg_token") if k in weights):
        return weights  # refused by its shape later on
    before = int("cls_token" in weights)
    tokens = before + (weights["reg_token"].shape[1] if "reg_token" in weights else 0)
    positions = weights["pos_embed"]
    side = round(positions.shape[1] ** 0.5)
    if before and side * side == positions.shape[1]:
        return weights | {"pos_embed": torch.cat([torch.zeros_like(positions[:, :1]), positions], 1)}
    rest = positions.shape[1] - tokens
    if tokens > before and rest > 0 and round(rest**0.5) ** 2 == rest:
        own = {"reg_token": weights["reg_token"] + positions[:, before:tokens]}
        return weights | own | {"pos_embed": torch.cat([positions[:, :before], positions[:, tokens:]], 1)}
    return weights
