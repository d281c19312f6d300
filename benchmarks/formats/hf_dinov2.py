"""Hugging Face Dinov2, with or without registers: pytorch_model.bin, model.safetensors, or their folder.

Source: huggingface/transformers, models/dinov2/modeling_dinov2.py, models/dinov2_with_registers/. Unverified: no file
of it was at hand. Positions are resized to an output size, with antialiasing where there are registers; the original
code's rules differ (see dinov2.py).
"""

from ...pretrain.common.card import IMAGENET_MEAN, IMAGENET_STD
from ...pretrain.common.shapes import vit_card
from ..checkpoints.stated import normalisation_from
from . import drop
from ._transformers import BESIDE, HEADS, facts_of, prefix_of, weights_of

ALWAYS = {"class_token": True, "final_norm": True, "layer_scale": True}
USUAL = {"qkv_bias": True}


def claims(shapes, meta) -> int:
    found = prefix_of(shapes) is not None and any(k.endswith(".0.layer_scale1.lambda1") for k in shapes)
    return 3 if found and any(k.endswith("embeddings.position_embeddings") for k in shapes) else 0


def convert(state, meta):
    prefix = prefix_of(state) or ""
    dropped = drop(state, {prefix + k: why for k, why in BESIDE.items()} | HEADS)
    weights = weights_of(state, prefix, dropped)
    shapes = {k: tuple(v.shape) for k, v in weights.items()}
    rule = "timm" if "reg_token" in weights else "size"
    normalisation = normalisation_from(meta) or {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    return weights, vit_card(shapes, pos_resize=rule, **facts_of(meta, 1e-6), **normalisation), dropped
