"""torchvision's ResNet, ResNeXt and wide ResNet: a flat state dict, with or without `fc`.

Source: pytorch/vision 0.29, torchvision/models/resnet.py; mean and std of its weights' transforms. Other code bases
write the same bare names. Unverified: no trained file of it was at hand (the network is torchvision's, in the tests).
"""

from ._conv import ALONE, IMAGENET, alone_resnet, and_alone, is_resnet, resnet

HEAD = ("fc.weight", "fc.bias")


def claims(shapes, meta) -> int:
    return int(alone_resnet(shapes, HEAD) is not None)


def convert(state, meta):
    prefix = state.pick(and_alone(ALONE, alone_resnet(state, HEAD)), is_resnet)
    return resnet(state, prefix, {prefix + "fc.": "head"}, **IMAGENET)
