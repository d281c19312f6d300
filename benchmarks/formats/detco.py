"""DetCo, ResNet: backbone weights under `state_dict`, a MoCo-like training checkpoint, or detectron2's names.

Source: xieenze/DetCo 6a692af, README.md; the pretraining code was never released. That the backbone file has bare names
below `state_dict` is known from its users. Unverified: no file of it was at hand.
"""

from ._conv import IMAGENET, RESNET, RESNET_PARTS, drop, find, only, pick, resnet
from .mocov2 import NETWORKS, moco_drops
from .resim import D2, detectron2

HEADS = ("fc.", "head.", "neck.")
BARE = {None: ("",)}


def claims(shapes, meta) -> int:
    prefix = find(shapes, RESNET, BARE)
    if prefix and only(shapes, prefix, RESNET_PARTS + HEADS):
        return 1 if "arch" in meta or meta.get("author") == "DenseCL" else 2
    return int(all(name in shapes for name in D2) or find(shapes, RESNET, NETWORKS) is not None)


def convert(state, meta):
    if all(name in state for name in D2):
        return detectron2(state)
    if find(state, RESNET, BARE) is not None:
        prefix = pick(state, RESNET, BARE)
        return resnet(state, prefix, drop(state, {prefix + head: "head" for head in HEADS}), **IMAGENET)
    prefix = pick(state, RESNET, NETWORKS)
    return resnet(state, prefix, moco_drops(state, prefix, HEADS), **IMAGENET)
