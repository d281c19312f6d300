"""Hugging Face ViT, and DeiT, ViTMAE, ViTMSN and I-JEPA of its names: file or folder, with heads, below a wrapper.

Source: huggingface/transformers 5.24, models/vit/modeling_vit.py, models/deit/, models/vit_mae/, models/ijepa/: names
as `save_pretrained` writes them, and as version 5 has them in memory (`layers.N.attention.q_proj`). Heads and norm eps
(1e-12 where nothing is said) are in config.json, mean and std in preprocessor_config.json. The image vector is the
class token, of a distilled DeiT too, as DeiTModel's pooler has it; I-JEPA has none and takes the mean of the patches.
"""

from ...pretrain.common.shapes import shapes_of, vit_card
from ..checkpoints.stated import normalisation_from
from ._transformers import facts_of, read, root_of
from .timm import whole_positions

MODEL_TYPES = ("vit", "vit_mae", "vit_msn", "deit", "ijepa")
ALWAYS = {"final_norm": True}
USUAL = {"qkv_bias": True}


def claims(shapes, meta) -> int:
    others = (".layer_scale1.", ".lambda_1", ".relative_position_bias_table")  # of DINOv2 and BEiT
    if root_of(shapes) is None or any(other in k for k in shapes for other in others):
        return 0
    return 3 if any(k.endswith(".0.layernorm_before.weight") for k in shapes) else 0


def convert(state, meta):
    weights, dropped = read(state, root_of(state) or "")
    weights = whole_positions(weights) if "dist_token" in weights else weights
    facts = facts_of(meta, 1e-12, state) | normalisation_from(meta)
    return weights, vit_card(shapes_of(weights), pos_resize="size", **facts), dropped
