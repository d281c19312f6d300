"""SwAV, ResNet: released file (flat, from DDP) or training checkpoint.

Source: facebookresearch/swav 06b1b7c, src/resnet50.py, main_swav.py, hubconf.py. Pretraining normalised red with 0.228
(src/multicropdataset.py). The stem pads in two steps, which together are torchvision's padding of 3.
"""

from ._conv import ALONE, IMAGENET, drop, is_resnet, prefix_of, resnet, under

HEADS = {"projection_head.": "head", "prototypes.": "prototypes"}
NORMALISATION = IMAGENET | {"std": (0.228, 0.224, 0.225)}


def claims(shapes, meta) -> int:
    prefix = prefix_of(shapes, ALONE, is_resnet)
    return 3 if prefix is not None and drop(shapes, under(prefix, HEADS)) else 0


def convert(state, meta):
    prefix = state.pick(ALONE, is_resnet)
    return resnet(state, prefix, under(prefix, HEADS), **NORMALISATION)
