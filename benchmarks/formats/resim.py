"""ReSim, ResNet: MoCo-like training checkpoint with its feature pyramid, or that file converted to detectron2's names.

Source: Tete-Xiao/ReSim a81a12d, main_moco.py, moco/models.py, moco/builder.py, and detection/
convert-pretrain-to-detectron2.py, which writes with torch.save what MoCo's own converter pickles. Downstream uses the
query encoder. Unverified: no file of it was at hand.
"""

import re

from ...pretrain.common.shapes import resnet_card, shapes_of
from ._conv import COUNTER, IMAGENET, drop, is_resnet, prefix_of
from .mocov2 import NETWORKS, read

HEADS = ("fc.", "fpn_lateral", "fpn_output", "mocodet_conv")
D2 = ("model.stem.conv1.weight", "model.res2.0.conv1.norm.running_mean", "model.res5.0.conv1.weight")
D2_HEADS = {"model.stem.fc.": "head", "model.backbone.fpn_": "head", "model.stem.mocodet_conv": "head"}


def is_detectron2(keys) -> bool:
    return all(name in keys for name in D2)


def claims(shapes, meta) -> int:
    if not is_detectron2(shapes) and prefix_of(shapes, NETWORKS, is_resnet) is None:
        return 0
    return 3 if any(".fpn_" in k for k in shapes) else 2


def convert(state, meta):
    return detectron2(state) if is_detectron2(state) else read(state, HEADS)


def detectron2(state):
    """What `convert` returns for a MoCo-like encoder in detectron2's names."""
    dropped, weights = drop(state, D2_HEADS), {}
    for key in state:
        if key in dropped:
            continue
        if key.endswith(COUNTER):
            dropped[key] = "counter"
        elif name := torchvision_name(key.removeprefix("model.")):
            weights[name] = state[key]
    return weights, resnet_card(shapes_of(weights), **IMAGENET), dropped


def torchvision_name(name: str) -> str | None:
    """detectron2's name of a ResNet's weight -> torchvision's; None if it is none."""
    found = re.fullmatch(r"(stem|res([2-5])\.(\d+))\.(conv([123])|shortcut)(\.norm)?\.(\w+)", name)
    if not found:
        return None
    _, stage, block, part, number, norm, what = found.groups()
    where = "" if stage is None else f"layer{int(stage) - 1}.{block}."
    layer = f"downsample.{int(bool(norm))}" if part == "shortcut" else f"bn{number}" if norm else part
    return f"{where}{layer}.{what}"
