"""solo-learn: a Lightning checkpoint of any of its methods, with a ResNet.

Source: vturrisi/solo-learn 9187ea3, solo/methods/ (base.py: classifier, momentum_backbone), solo/backbones/resnet/
(torchvision's). Its evaluations take `backbone`, which is trained by gradients. The stem of one 3x3 convolution that it
has for CIFAR is refused. Mean and std are those of its ImageNet recipes.
"""

import re

from . import below
from ._conv import IMAGENET, RESNET_PARTS, is_resnet, only, prefix_of, resnet

NETWORKS = {
    "student": ("state_dict.backbone.", "backbone."),
    "teacher": ("state_dict.momentum_backbone.", "momentum_backbone."),
}
HEADS = re.compile(r"(?:momentum_)?(?:classifier|projector|predictor\d?|prototypes|head)|transformer_encoder")
LOSS = re.compile(r"queue\w*|\w+_loss_func|whitening|local_memory_\w+|knn")
ASSUMED = ("mean", "std")


def claims(shapes, meta) -> int:
    prefix = prefix_of(shapes, NETWORKS, is_resnet)
    if prefix is None or not only(shapes, prefix, RESNET_PARTS):
        return 0
    home = prefix.removesuffix("momentum_backbone.").removesuffix("backbone.")
    parts = {name.partition(".")[0] for name in below(shapes, home)} - {"backbone", "momentum_backbone"}
    known = all(HEADS.fullmatch(part) or LOSS.fullmatch(part) for part in parts)
    return 3 * (known and "classifier" in parts and (len(parts) > 1 or "hyper_parameters" in meta))


def convert(state, meta):
    prefix = state.pick(NETWORKS, is_resnet)
    home = prefix.removesuffix("momentum_backbone.").removesuffix("backbone.")
    reasons = {}
    for part in {"".join(name.partition(".")[:2]) for name in state.below(home)}:
        bare = part.rstrip(".")
        if bare in ("backbone", "momentum_backbone") and f"{home}{part}" != prefix:
            reasons[home + part] = "the other network"
        elif HEADS.fullmatch(bare) or LOSS.fullmatch(bare):
            reasons[home + part] = "head" if HEADS.fullmatch(bare) else "loss"
    return resnet(state, prefix, reasons, **IMAGENET)
