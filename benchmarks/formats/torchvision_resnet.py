"""torchvision's ResNet, ResNeXt and wide ResNet: a flat state dict, with or without `fc`.

Source: pytorch/vision 0.29, torchvision/models/resnet.py; mean and std of its weights' transforms. Other code bases
write the same bare names. Unverified: no trained file of it was at hand (the network is torchvision's, in the tests).
"""

from ._conv import ALONE, IMAGENET, RESNET_PARTS, is_resnet, only, prefix_of, resnet


def claims(shapes, meta) -> int:
    prefix = prefix_of(shapes, ALONE, is_resnet)
    return int(prefix == "" and only(shapes, "", (*RESNET_PARTS, "fc.weight", "fc.bias")))


def convert(state, meta):
    prefix = state.pick(ALONE, is_resnet)
    return resnet(state, prefix, {prefix + "fc.": "head"}, **IMAGENET)
