"""Hugging Face ViT: pytorch_model.bin, model.safetensors, or their folder; with or without pooler and classifier.

Source: huggingface/transformers, models/vit/modeling_vit.py, names as `save_pretrained` writes them and as version 5
has them in memory (`layers.N.attention.q_proj`; that form is unverified: no file of it was at hand). Heads and norm eps
(1e-12 where nothing is said) are in config.json, mean and std in preprocessor_config.json.
"""

from ...pretrain.common.shapes import vit_card
from ..checkpoints.stated import normalisation_from
from . import drop
from ._transformers import BESIDE, HEADS, facts_of, prefix_of, weights_of

ALWAYS = {"class_token": True, "final_norm": True}
USUAL = {"qkv_bias": True}


def claims(shapes, meta) -> int:
    prefix = prefix_of(shapes)
    if prefix is None or any(".layer_scale1." in k for k in shapes):
        return 0
    return 3 if any(k.endswith(".0.layernorm_before.weight") for k in shapes) else 0


def convert(state, meta):
    prefix = prefix_of(state) or ""
    dropped = drop(state, {prefix + k: why for k, why in BESIDE.items()} | HEADS)
    weights = weights_of(state, prefix, dropped)
    shapes = {k: tuple(v.shape) for k, v in weights.items()}
    return weights, vit_card(shapes, pos_resize="size", **facts_of(meta, 1e-12), **normalisation_from(meta)), dropped
