"""timm's ResNet, ResNeXt and wide ResNet, C and D variants included: a state dict, or timm's own training checkpoint.

Source: huggingface/pytorch-image-models 1.0.31, timm/models/resnet.py, timm/utils/checkpoint_saver.py. Stems are one
7x7 convolution, or three of 3x3 (C, D; tiered: T), shortcuts of D and T pool. All its weights of this form want
ImageNet's mean and std, except one ResNet-34 (0.5): there, a config.json or the user has to say it.
Unverified: no trained file of it was at hand (the network is timm's itself).
"""

from ..checkpoints.stated import architectures, normalisation_from
from ._conv import (
    ALONE,
    IMAGENET,
    RESNET_PARTS,
    alone_resnet,
    and_alone,
    is_any_resnet,
    only,
    prefix_of,
    resnet,
)
from .timm import of_hub

HEAD = ("fc.weight", "fc.bias")


def claims(shapes, meta) -> int:
    prefix = alone_resnet(shapes, HEAD, is_any_resnet)
    trained = prefix_of(shapes, ALONE, is_any_resnet) == "state_dict." and "arch" in meta
    if prefix is None:
        return 2 * (trained and only(shapes, "state_dict.", RESNET_PARTS + HEAD))
    return 2 if of_hub(meta) or trained else 1


def convert(state, meta):
    prefix = state.pick(and_alone(ALONE, alone_resnet(state, HEAD, is_any_resnet)), is_any_resnet)
    reasons = {prefix + "fc.": "head"} | ({"state_dict_ema.": "EMA copy"} if prefix else {})
    if not any(architectures(meta)):  # strides, blurs and dilations have no weights
        state.assume("block")
    weights, card, dropped = resnet(state, prefix, reasons)
    known = normalisation_from(meta)
    if not known and not (card.block == "basic" and card.blocks == (3, 4, 6, 3)):
        known = IMAGENET
    return weights, card.override(known), dropped
