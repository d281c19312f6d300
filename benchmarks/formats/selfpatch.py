"""SelfPatch: full training checkpoint, or its backbone alone.

Source: alinlab/SelfPatch 81aef14, main_selfpatch.py (save_dict), selfpatch_vision_transformer.py. Downstream uses the
teacher's backbone; its class-attention head gives the image vector. Backbone: no class token, no final norm.
"""

from ...pretrain.common.errors import UserError
from ...pretrain.common.shapes import shapes_of, vit_card
from . import IMAGENET, fits, is_vit, prefix_of
from .dino import NETWORKS, beside

HEADS = {"c_head.": "head", "p_head.": "head"}
ALWAYS = {"qkv_bias": True}


def is_selfpatch(keys) -> bool:
    """Do the names hold a ViT without class token and final norm?"""
    return is_vit(keys) and not {"cls_token", "norm.weight", "fc_norm.weight"} & set(keys)


def claims(shapes, meta) -> int:
    prefix = prefix_of(shapes, NETWORKS, is_selfpatch)
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
    weights = {n: state[key] for n, key in state.below(prefix).items() if key not in {*dropped, *readout.values()}}
    weights |= {f"readout.{name}": state[key] for name, key in readout.items()}
    return weights, vit_card(shapes_of(weights), pos_resize="dino", **IMAGENET), dropped
