"""mmpretrain's (mmcls's, mmselfsup's) ResNet: classifier, or self-supervised model such as MoCo v2, MoCo v3 and BYOL.

Source: open-mmlab/mmpretrain, mmpretrain/models/backbones/resnet.py, models/selfsup/ (moco.py, mocov3.py, byol.py,
densecl.py), models/utils/ema.py. ResNeXt, ResNetV1c and V1d (three convolutions in the stem, pooled shortcuts) are
among them. Downstream uses `backbone`, which is the online network; its average is `encoder_k`, `momentum_encoder` or
`target_net`, without which the file has one network.
"""

import re

from ...pretrain.common.card import BLOCKS
from ...pretrain.common.errors import UserError
from . import prefix_of
from ._conv import RESNET, assume_strides, drop, resnet
from ._mm import HOMES, beside, by_runner, images_of, teachers
from .mmpretrain_vit import config_of

DEEP = {"stem.0.conv.weight", "stem.2.conv.weight", *RESNET} - {"conv1.weight", "bn1.running_mean"}
POOLED = re.compile(r"layer[2-4]\.0\.downsample\.2\.weight")  # with `avg_down` a pooling comes first


def is_mm(keys) -> bool:
    return RESNET.issubset(keys) or DEEP.issubset(keys)


def networks(keys) -> dict:
    found = prefix_of(keys, {None: teachers()}, is_mm) is not None
    return {"online": HOMES, "teacher": teachers()} if found else {None: HOMES}


def claims(shapes, meta) -> int:
    if prefix_of(shapes, {None: HOMES}, is_mm) is None:
        return 0
    telling = None not in networks(shapes) or any(k.startswith(("neck.", "state_dict.neck.")) for k in shapes)
    return 3 if by_runner(meta) else 2 * telling


def convert(state, meta):
    prefix = state.pick(networks(state), is_mm)
    root = "state_dict." if prefix.startswith("state_dict.") else ""
    taken = state.below(prefix)
    dropped = drop(set(state) - set(taken.values()), beside(root) | {f"{root}backbone.": "online"})
    shift = any(POOLED.fullmatch(name) for name in taken)
    tensors = {timm_name(name, shift): state[key] for name, key in taken.items()}
    back = {timm_name(name, shift): key for name, key in taken.items()}
    config = config_of(meta)
    if re.search(r"\bdilations['\"]?\s*[=:]\s*[\[(][\d,\s]*[2-9]", config):
        raise UserError("its config dilates convolutions, which no ResNet here does")
    if not config:
        assume_strides(state, tensors)
    caffe = {"block": BLOCKS[1]} if re.search(r"\bstyle['\"]?\s*[=:]\s*['\"]caffe", config) else {}
    weights, card, more = resnet(tensors, "", {}, **images_of(state, meta))
    return (
        weights,
        card.override(caffe if card.block != "basic" else {}),
        dropped | {back[k]: w for k, w in more.items()},
    )


def timm_name(name: str, pooled: bool) -> str:
    """timm's name; pooled: the network's shortcuts of stride 2 begin with a pooling, and timm counts one in all."""
    if found := re.fullmatch(r"stem\.(\d)\.(conv|bn)\.(\w+)", name):
        number, norm = int(found[1]), found[2] == "bn"
        return f"bn1.{found[3]}" if (number, norm) == (2, True) else f"conv1.{3 * number + norm}.{found[3]}"
    if pooled and (found := re.fullmatch(r"layer1\.0\.downsample\.([01])\.(\w+)", name)):
        return f"layer1.0.downsample.{int(found[1]) + 1}.{found[2]}"
    return name
