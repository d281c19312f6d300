"""DINOv3's ViT: released backbone, or a network of a training checkpoint. Unverified: no file of it was at hand.

Source: facebookresearch/dinov3, dinov3/models/vision_transformer.py, dinov3/hub/backbones.py, dinov3/layers/. Positions
are rotary, with the periods stored in the file (released ones were rounded to bfloat16), and tell the number of heads;
`storage_tokens` are registers; the bias of the keys is masked out (`bias_mask`); w1, w2, w3 are a SwiGLU. The norm of
local crops' class tokens is for training only. Where no config.yaml of its run says more, LayerNorm's eps is taken as
1e-5, as in all released models (`layernormbf16`).
"""

import torch

from ...pretrain.common.errors import UserError, shorten
from ...pretrain.common.shapes import shapes_of, vit_card
from ..checkpoints.stated import table_in
from . import IMAGENET, drop, prefix_of, under

NETWORKS = {
    "teacher": ("teacher.backbone.", "teacher_ema.backbone.", "model_ema.backbone."),
    "student": ("student.backbone.",),
    None: ("backbone.", ""),
}
MARKS = {"rope_embed.periods", "cls_token", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "norm.weight"}
NAMES = {
    "storage_tokens": "reg_token",
    "rope_embed.periods": "rope_periods",
    ".mlp.w1.": ".mlp.fc1.",
    ".mlp.w3.": ".mlp.fc2.",
}
ALWAYS = {"layer_scale": True}
USUAL = {"qkv_bias": True, "registers": 4}
EPS = {"layernorm": 1e-6, "layernormbf16": 1e-5}  # config.yaml: student.norm_layer
BUILT = {"norm_layer": tuple(EPS), "pos_embed_rope_dtype": ("fp32",), "pos_embed_rope_normalize_coords": ("separate",)}
BESIDE = {"mask_token": "mask token", "local_cls_norm.": "norm of local crops", "head.": "head"}
HEADS = {"dino_head.": "head", "ibot_head.": "head"}
SIDES = ("teacher.", "teacher_ema.", "model_ema.", "student.", "gram_teacher.", "gram_backbone.")
LOSSES = dict.fromkeys(("dino_loss.", "ibot_patch_loss.", "koleo_loss.", "gram_loss."), "loss")


def claims(shapes, meta) -> int:
    return 3 if prefix_of(shapes, NETWORKS, MARKS.issubset) is not None else 0


def convert(state, meta):
    prefix = state.pick(NETWORKS, MARKS.issubset)
    reasons = under(prefix, BESIDE)
    if prefix.endswith(".backbone."):
        own = prefix.removesuffix("backbone.")
        reasons |= under(own, HEADS) | {side: side.rstrip(".") for side in SIDES if side != own} | LOSSES
    dropped = drop(state, reasons)
    found = {name: state[key] for name, key in state.below(prefix).items() if key not in dropped}
    masks, biases = (sum(n.endswith(f"attn.qkv.{what}") for n in found) for what in ("bias_mask", "bias"))
    if masks not in (0, biases):
        raise UserError(f"{masks} of {biases} blocks have a bias_mask: all of them do, or none")
    weights = {}
    for name, value in found.items():
        if name.endswith(("attn.qkv.bias_mask", "mlp.w2.weight", "mlp.w2.bias")):
            continue  # go into the one beside them
        if name.endswith("attn.qkv.bias"):
            value = _masked(name, value, found.get(f"{name}_mask"))
        if ".mlp.w1." in name:
            gate = found.get(name.replace(".w1.", ".w2."))
            if gate is None or gate.shape != value.shape:
                raise UserError(f"{name}: no w2 of the same shape beside it")
            value = torch.cat([value, gate])
        for old, new in NAMES.items():
            name = name.replace(old, new)
        weights[name] = value
    return weights, vit_card(shapes_of(weights), norm_eps=_eps(state, meta), **IMAGENET), dropped


def _eps(state, meta) -> float:
    """LayerNorm's, by the config.yaml of the run. Raises UserError for what that says and is not built here."""
    config = table_in(meta, "config.yaml", "student")
    for key, values in BUILT.items():
        if config.get(key, values[0]) not in values:
            here = " and ".join(values)
            raise UserError(f"config.yaml: student.{key} {shorten(config[key])} is not built here, {here} is")
    if "norm_layer" not in config:
        state.assume("norm_eps")
    return EPS[config.get("norm_layer", "layernormbf16")]


def _masked(name: str, bias, mask):
    """The bias that the network adds. Raises UserError for a mask that is none."""
    if mask is None:
        return bias
    if mask.shape != bias.shape or not bool(((mask == 0) | (mask == 1)).all()):
        raise UserError(f"{name}_mask is not one 0 or 1 for each of {list(bias.shape)}")
    return bias * mask.to(bias.dtype)
