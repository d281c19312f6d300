"""Hugging Face ViT: pytorch_model.bin, model.safetensors, or their folder; with or without pooler and classifier.

Source: huggingface/transformers, models/vit/modeling_vit.py, names as `save_pretrained` writes them and as version 5
has them in memory (`layers.N.attention.q_proj`; that form is unverified: no file of it was at hand). Heads and norm eps
(1e-12 where nothing is said) are in config.json, mean and std in preprocessor_config.json.
"""

from ...pretrain.common.shapes import shapes_of, vit_card
from ..checkpoints.stated import normalisation_from
from ._transformers import facts_of, read, root_of

MODEL_TYPES = ("vit", "vit_mae", "vit_msn", "deit", "ijepa")
ALWAYS = {"class_token": True, "final_norm": True}
USUAL = {"qkv_bias": True}


def claims(shapes, meta) -> int:
    others = (".layer_scale1.", ".lambda_1", ".relative_position_bias_table")  # of DINOv2 and BEiT
    if root_of(shapes) is None or any(other in k for k in shapes for other in others):
        return 0
    return 3 if any(k.endswith(".0.layernorm_before.weight") for k in shapes) else 0


def convert(state, meta):
    weights, dropped = read(state, root_of(state) or "")
    facts = facts_of(meta, 1e-12) | normalisation_from(meta)
    return weights, vit_card(shapes_of(weights), pos_resize="size", **facts), dropped
