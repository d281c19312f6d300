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


def example(folder):
    """A tiny full checkpoint."""
    import torch

    from ...pretrain.common.card import Card
    from ..backbones.encoder import Encoder

    card = Card("vit", 8, 24, 2, 3, False, False, pos="learned 4x4", mlp_ratio=2.0, readout="class_attention")
    encoder = Encoder(card)
    teacher = {f"backbone.{k}": v for k, v in encoder.vit.state_dict().items()}
    teacher |= {f"ca_head.{k}": v for k, v in encoder.readout.state_dict().items()}
    teacher |= {"c_head.mlp.0.weight": torch.zeros(8, 24), "p_head.mlp.0.weight": torch.zeros(8, 24)}
    student = {f"module.{k}": v for k, v in teacher.items()}
    losses = {"center": torch.zeros(1, 1, 8), "patch_center": torch.zeros(1, 8)}
    torch.save({"student": student, "teacher": teacher, "dino_loss": losses}, folder / "selfpatch.pth")
    return folder / "selfpatch.pth", {"heads": 3}
