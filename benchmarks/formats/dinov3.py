"""DINOv3's ViT: released backbone, or a network of a training checkpoint. Unverified: no file of it was at hand.

Source: facebookresearch/dinov3, dinov3/models/vision_transformer.py, dinov3/hub/backbones.py, dinov3/layers/. Positions
are rotary, with the periods stored in the file (released ones were rounded to bfloat16), and tell the number of heads;
`storage_tokens` are registers; the bias of the keys is masked out (`bias_mask`); LayerNorm's eps is 1e-5, as in all
released models (`layernormbf16`); w1, w2, w3 are a SwiGLU. The norm of local crops' class tokens is for training only.
"""

import torch

from ...pretrain.common.card import IMAGENET_MEAN, IMAGENET_STD
from ...pretrain.common.errors import UserError
from ...pretrain.common.shapes import vit_card
from . import drop

NETWORKS = {
    "teacher": ("teacher.backbone.", "teacher_ema.backbone.", "model_ema.backbone."),
    "student": ("student.backbone.",),
    None: ("backbone.", ""),
}
PERIODS = "rope_embed.periods"
MARKS = {PERIODS, "cls_token", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "norm.weight"}
ALWAYS = {"layer_scale": True}
USUAL = {"qkv_bias": True, "registers": 4}
BESIDE = {"mask_token": "mask token", "local_cls_norm.": "norm of local crops", "head.": "head"}


def is_dinov3(names) -> bool:
    return set(names) >= MARKS


def claims(shapes, meta) -> int:
    places = [p for prefixes in NETWORKS.values() for p in prefixes]
    return 3 if any(is_dinov3(k.removeprefix(p) for k in shapes if k.startswith(p)) for p in places) else 0


def convert(state, meta):
    prefix = state.pick(NETWORKS, is_dinov3)
    reasons = {prefix + name: why for name, why in BESIDE.items()}
    if prefix.endswith(".backbone."):
        side = prefix.removesuffix("backbone.")
        reasons |= {side + name: "head" for name in ("dino_head.", "ibot_head.")}
        others = {p.partition(".")[0] + "." for ps in NETWORKS.values() for p in ps if p.endswith(".backbone.")}
        reasons |= {other: other.rstrip(".") for other in (others | {"gram_teacher.", "gram_backbone."}) - {side}}
        reasons |= dict.fromkeys(("dino_loss.", "ibot_patch_loss.", "koleo_loss.", "gram_loss."), "loss")
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
        weights[_timm_name(name)] = value
    shapes = {k: tuple(v.shape) for k, v in weights.items()}
    return weights, vit_card(shapes, norm_eps=1e-5, mean=IMAGENET_MEAN, std=IMAGENET_STD), dropped


def _timm_name(name: str) -> str:
    pairs = {"storage_tokens": "reg_token", PERIODS: "rope_periods", ".mlp.w1.": ".mlp.fc1.", ".mlp.w3.": ".mlp.fc2."}
    for old, new in pairs.items():
        name = name.replace(old, new)
    return name


def _masked(name: str, bias, mask):
    """The bias that the network adds. Raises UserError for a mask that is none."""
    if mask is None:
        return bias
    if mask.shape != bias.shape or not bool(((mask == 0) | (mask == 1)).all()):
        raise UserError(f"{name}_mask is not one 0 or 1 for each of {list(bias.shape)}")
    return bias * mask.to(bias.dtype)
