"""DINO's ResNet-50: released backbone or full training checkpoint. Unverified: no file of it was at hand.

Source: facebookresearch/dino 7c446df, main_dino.py (save_dict), utils.py (MultiCropWrapper), hubconf.py, README.md.
Downstream uses the teacher. Names are torchvision's, without `fc`.
"""

from ._conv import IMAGENET, RESNET, RESNET_PARTS, default_prefix, only, pick, resnet
from .dino import NETWORKS

HEADS = ("head.", "projection_head.", "prototypes.")
OTHER = {"teacher.": {"student.": "student"}, "student.": {"teacher.": "teacher"}}


def claims(shapes, meta) -> int:
    prefix = default_prefix(shapes, RESNET, NETWORKS)
    if prefix is None:
        return 0
    if "teacher." in prefix:
        return 3 if "dino_loss.center" in shapes else 2
    return int(prefix == "" and only(shapes, "", RESNET_PARTS))


def convert(state, meta):
    prefix = pick(state, RESNET, NETWORKS)
    mine = prefix.removesuffix("backbone.")
    reasons = {mine + head: "head" for head in HEADS if mine} | {"dino_loss.": "loss"} | OTHER.get(mine, {})
    return resnet(state, prefix, reasons, **IMAGENET)
