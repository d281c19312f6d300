"""DetCo, ResNet: backbone weights under `state_dict`, a MoCo-like training checkpoint, or detectron2's names.

Source: xieenze/DetCo 6a692af, README.md; the pretraining code was never released. That the backbone file has bare names
below `state_dict` is known from its users. Unverified: no file of it was at hand.
"""

from ._conv import IMAGENET, alone_resnet, is_resnet, prefix_of, resnet
from .mocov2 import NETWORKS, read
from .resim import detectron2, is_detectron2

HEADS = ("fc.", "head.", "neck.")


def claims(shapes, meta) -> int:
    if alone_resnet(shapes, HEADS) == "state_dict.":
        return 1
    return int(is_detectron2(shapes) or prefix_of(shapes, NETWORKS, is_resnet) is not None)


def convert(state, meta):
    if is_detectron2(state):
        return detectron2(state)
    if (home := alone_resnet(state, HEADS)) is None:
        return read(state, HEADS)
    prefix = state.pick({None: (home,)}, is_resnet)
    state.assume("block")
    return resnet(state, prefix, {prefix + head: "head" for head in HEADS}, **IMAGENET)
