"""SelfPatch: full training checkpoint, or its backbone alone.

Source: alinlab/SelfPatch 81aef14, main_selfpatch.py (save_dict), selfpatch_vision_transformer.py. Downstream uses the
teacher's backbone; its class-attention head gives the image vector. Backbone: no class token, no final norm.
"""

from ...pretrain.common.card import IMAGENET_MEAN, IMAGENET_STD
from ...pretrain.common.errors import UserError
from ...pretrain.common.shapes import vit_card
from . import find, fits, is_vit, take
from .dino import NETWORKS, PREFIXES, beside

HEADS = {"c_head.": "head", "p_head.": "head"}
ALWAYS = {"qkv_bias": True}


def is_selfpatch(keys) -> bool:
    """Do the names hold a ViT without class token and final norm?"""
    return is_vit(keys) and not {"cls_token", "norm.weight", "fc_norm.weight"} & set(keys)


def claims(shapes, meta) -> int:
    prefix = find(shapes, PREFIXES, is_selfpatch)
    if prefix is None:
        return 0
    if "dino_loss.patch_center" in shapes or any(".ca_head." in f".{k}" for k in shapes):
        return 3
    return 2 if prefix else int(fits(shapes))


def convert(state, meta):
    prefix = state.pick(NETWORKS, is_selfpatch)
    around = prefix.removesuffix("backbone.")  # where ca_head lies
    dropped = beside(state, prefix, HEADS)
    readout = state.below(around + "ca_head.")
    if not readout and any(key.startswith(tuple(around + head for head in HEADS)) for key in state):
        raise UserError("it has no ca_head, which gives the image vector, although its other heads are there")
    weights, _ = take(state, prefix, dict.fromkeys(readout.values(), "") | dropped)
    weights |= {f"readout.{name}": state[key] for name, key in readout.items()}
    shapes = {k: tuple(v.shape) for k, v in weights.items()}
    return weights, vit_card(shapes, pos_resize="dino", mean=IMAGENET_MEAN, std=IMAGENET_STD), dropped
