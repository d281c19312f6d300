"""Hugging Face Dinov2, with or without registers: pytorch_model.bin, model.safetensors, or their folder.

Source: huggingface/transformers, models/dinov2/modeling_dinov2.py, models/dinov2_with_registers/. Unverified: no file
of it was at hand. Positions are resized to an output size, with antialiasing where there are registers; the original
code's rules differ (see dinov2.py).
"""

from ...pretrain.common.shapes import shapes_of, vit_card
from ..checkpoints.stated import normalisation_from
from . import IMAGENET
from ._transformers import facts_of, read, root_of

MODEL_TYPES = ("dinov2", "dinov2_with_registers")
ALWAYS = {"class_token": True, "final_norm": True, "layer_scale": True}
USUAL = {"qkv_bias": True}


def claims(shapes, meta) -> int:
    found = root_of(shapes) is not None and any(k.endswith(".0.layer_scale1.lambda1") for k in shapes)
    return 3 if found and any(k.endswith("embeddings.position_embeddings") for k in shapes) else 0


def convert(state, meta):
    weights, dropped = read(state, root_of(state) or "")
    rule = "timm" if "reg_token" in weights else "size"
    facts = facts_of(meta, 1e-6, state) | (normalisation_from(meta) or IMAGENET)
    return weights, vit_card(shapes_of(weights), pos_resize=rule, **facts), dropped
