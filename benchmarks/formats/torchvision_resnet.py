"""torchvision's ResNet, ResNeXt and wide ResNet: a flat state dict, or the file of its training code (`model`).

Source: pytorch/vision 0.29, torchvision/models/resnet.py, references/classification/train.py; mean and std of its
weights' transforms. Other code bases write the same bare names, and may have their strides elsewhere. Unverified: no
trained file of it was at hand (the network is torchvision's, in the tests).
"""

from ._conv import (
    ALONE,
    IMAGENET,
    RESNET_PARTS,
    alone_resnet,
    and_alone,
    below,
    is_resnet,
    only,
    resnet,
)

HEAD = ("fc.weight", "fc.bias")
AVERAGE = "model_ema."


def claims(shapes, meta) -> int:
    if alone_resnet(shapes, HEAD) is not None:
        return 1
    trained = is_resnet(below(shapes, "model.")) and only(shapes, "model.", RESNET_PARTS + HEAD)
    return 2 * (trained and f"{AVERAGE}n_averaged" in shapes)


def convert(state, meta):
    home = alone_resnet(state, HEAD)
    prefix = state.pick(and_alone(ALONE, home), is_resnet)
    if home is not None:
        state.assume("block")
    reasons = {AVERAGE: "EMA copy"} if prefix == "model." else {}
    return resnet(state, prefix, reasons | {prefix + "fc.": "head"}, **IMAGENET)
