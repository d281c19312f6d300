"""VICReg, VICRegL and Barlow Twins, ResNet: training checkpoint (`model`).

Source: facebookresearch/vicreg, main_vicreg.py, resnet.py; facebookresearch/VICRegL, main_vicregl.py, utils.py,
evaluate.py (VICRegL pretrains with a std of 0.228 and evaluates with 0.229); facebookresearch/barlowtwins, main.py.
VICReg's stem pads in two steps, which together are torchvision's padding of 3. Their `resnet50.pth`, the backbone
alone, has torchvision's names and is read as torchvision's.
"""

import re

from . import under
from ._conv import IMAGENET, RESNET_PARTS, is_resnet, only, prefix_of, resnet

NETWORKS = {None: ("model.backbone.", "backbone.")}
BESIDE = {"projector.": "head", "maps_projector.": "head", "classifier.": "classifier", "bn.": "head"}
HEAD = re.compile(r"(?:model\.)?(?:maps_)?projector\.\d+\.weight")


def claims(shapes, meta) -> int:
    prefix = prefix_of(shapes, NETWORKS, is_resnet)
    if prefix is None or not only(shapes, prefix, RESNET_PARTS):
        return 0
    root = prefix.removesuffix("backbone.")
    beside = [k for k in shapes if not k.startswith(prefix)]
    if not beside or not all(k.startswith(tuple(under(root, BESIDE))) for k in beside):
        return 0
    own = any(k.startswith((f"{root}maps_projector.", f"{root}bn.")) for k in beside)
    return 3 if own else 2 * any(HEAD.fullmatch(k) for k in beside)


def convert(state, meta):
    prefix = state.pick(NETWORKS, is_resnet)
    return resnet(state, prefix, under(prefix.removesuffix("backbone."), BESIDE), **IMAGENET)
