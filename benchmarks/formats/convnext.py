"""ConvNeXt: DINOv3's (its own files, Hugging Face's, timm's), ConvNeXt and ConvNeXt V2 in official or timm's names.

Source: facebookresearch/dinov3 6876159, dinov3/models/convnext.py; facebookresearch/ConvNeXt, models/convnext.py;
huggingface/transformers 5, models/dinov3_convnext/; timm 1.0.31, timm/models/convnext.py. The image vector is the
final norm of the mean, the patches are normed alike. LayerNorm's eps is 1e-6, or what config.json says. Mean and std
are ImageNet's unless a config says others; of timm's files alone they are assumed.
"""

import re

from ...pretrain.common.errors import UserError
from ...pretrain.common.shapes import convnext_card, shapes_of
from ..checkpoints.stated import architectures, normalisation_from, table_in
from . import IMAGENET, alone, and_alone, drop, prefix_of, under
from ._transformers import facts_of
from .timm import of_hub

NETWORKS = {
    "teacher": ("teacher.backbone.", "teacher_ema.backbone.", "model_ema.backbone."),
    "student": ("student.backbone.",),
}
MARKS = {  # a weight of the stem -> (another's pattern, the names of the rest)
    "downsample_layers.0.0.weight": "stages.0.0.dwconv.weight",
    "stages.0.downsample_layers.0.weight": "stages.0.layers.0.depthwise_conv.weight",
    "stem.0.weight": "stages.0.blocks.0.conv_dw.weight",
}
NAMES = [
    (re.compile(old), new)
    for old, new in (
        (r"^downsample_layers\.0\.", "stem."),
        (r"^downsample_layers\.(\d+)\.", r"stages.\1.downsample."),
        (r"^stages\.0\.downsample_layers\.", "stem."),
        (r"\.downsample_layers\.", ".downsample."),
        (r"^stages\.(\d+)\.(\d+)\.", r"stages.\1.blocks.\2."),
        (r"\.layers\.", ".blocks."),
        (r"\.(?:dwconv|depthwise_conv)\.", ".conv_dw."),
        (r"\.(?:pwconv|pointwise_conv)([12])\.", r".mlp.fc\1."),
        (r"\.layer_norm\.", ".norm."),
        (r"\.grn\.gamma$", ".mlp.grn.weight"),
        (r"\.grn\.beta$", ".mlp.grn.bias"),
        (r"^(?:layer_norm|norm)\.", "head.norm."),
    )
]
HEADS = dict.fromkeys(("dino_head.", "ibot_head."), "head")
SIDES = ("teacher.", "teacher_ema.", "model_ema.", "student.", "gram_teacher.", "gram_backbone.")
LOSSES = dict.fromkeys(("dino_loss.", "ibot_patch_loss.", "koleo_loss.", "gram_loss."), "loss")
USUAL = {"patch": 4, "final_norm": True}


def is_convnext(keys) -> bool:
    keys = set(keys)
    return any({stem, block} <= keys for stem, block in MARKS.items())


def networks(keys) -> dict:
    """DINOv3's two, or the one of a file beside which nothing else lies than its averaged copy."""
    own = [k for k in keys if not k.startswith("model_ema.") or "model_ema.backbone." in k]
    own = [k for k in own if not k.endswith(("layer_norm.weight", "layer_norm.bias"))]  # beside `model.`, see below
    found = (alone(own, mark) for mark in MARKS)
    return and_alone(NETWORKS, next((p for p in found if p is not None), None))


def claims(shapes, meta) -> int:
    if (prefix := prefix_of(shapes, networks(shapes), is_convnext)) is None:
        return 0
    return 1 if f"{prefix}stem.0.weight" in shapes else 3  # timm's


def convert(state, meta):
    prefix = state.pick(networks(state), is_convnext)
    timm = f"{prefix}stem.0.weight" in state
    # of a DINOv3 `norms` are those of the maps: three that do nothing, and the last one once more
    reasons = {"head.fc.": "head"} if timm else {"head.": "head", "norms.": "copy", "mask_token": "mask token"}
    reasons = under(prefix, reasons) | ({"model_ema.": "EMA copy"} if prefix == "model." else {})
    if prefix.endswith(".backbone."):
        own = prefix.removesuffix("backbone.")
        reasons |= under(own, HEADS) | {side: side.rstrip(".") for side in SIDES if side != own} | LOSSES
    dropped = drop(state, reasons)
    names, weights = state.below(prefix), {}
    if prefix.endswith("model."):  # transformers 5 keeps the final norm beside the stages
        outer = state.below(prefix.removesuffix("model."))
        names |= {name: key for name, key in outer.items() if name.startswith("layer_norm.")}
    for name, key in names.items():
        if key in dropped:
            continue
        for old, new in NAMES:
            name = old.sub(new, name)
        value = state[key]
        pointwise = ".mlp.fc" in name and value.ndim == 4  # timm's smaller ones have 1x1 convolutions
        weights[name] = value.flatten() if ".grn." in name else value.flatten(1) if pointwise else value
    facts = facts_of(meta, 1e-6) if "hidden_sizes" in table_in(meta, "config.json") else {}
    normalisation = normalisation_from(meta)
    if timm and not normalisation and not of_hub(meta):
        state.assume("mean", "std")
    if timm and not any(architectures(meta)):
        state.assume("act", "norm_eps")
    card = convnext_card(shapes_of(weights), **facts, **(normalisation or IMAGENET))
    if not card.layer_scale and not card.response_norm:
        raise UserError("it has neither ConvNeXt's layer scale nor V2's response norms: part of it was lost?")
    return weights, card, dropped
