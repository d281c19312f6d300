"""SwAV, ResNet: released file (flat, from DDP) or training checkpoint.

Source: facebookresearch/swav 06b1b7c, src/resnet50.py, main_swav.py, hubconf.py. Pretraining normalised red with 0.228
(src/multicropdataset.py). The stem pads in two steps, which together are torchvision's padding of 3.
"""

from ._conv import IMAGENET, RESNET, drop, find, pick, resnet

NETWORKS = {None: ("",)}
HEADS = {"projection_head.": "head", "prototypes.": "prototypes"}


def claims(shapes, meta) -> int:
    prefix = find(shapes, RESNET, NETWORKS)
    return 3 if prefix is not None and drop(shapes, {prefix + name: why for name, why in HEADS.items()}) else 0


def convert(state, meta):
    prefix = pick(state, RESNET, NETWORKS)
    reasons = {prefix + name: why for name, why in HEADS.items()}
    return resnet(state, prefix, drop(state, reasons), **(IMAGENET | {"std": (0.228, 0.224, 0.225)}))
