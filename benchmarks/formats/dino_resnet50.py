"""DINO's ResNet-50: released backbone or full training checkpoint. Unverified: no file of it was at hand.

Source: facebookresearch/dino 7c446df, main_dino.py (save_dict), utils.py (MultiCropWrapper), hubconf.py, README.md.
Downstream uses the teacher. Names are torchvision's, without `fc`.
"""

from ._conv import IMAGENET, alone_resnet, and_alone, is_resnet, prefix_of, resnet, wrapped
from .dino import NETWORKS as DINO

NETWORKS = {role: wrapped(*prefixes) for role, prefixes in DINO.items()}
HEADS = ("head.", "projection_head.", "prototypes.")
OTHER = {"teacher.": {"student.": "student"}, "student.": {"teacher.": "teacher"}}


def claims(shapes, meta) -> int:
    if alone_resnet(shapes) is not None:
        return 1
    prefix = prefix_of(shapes, NETWORKS, is_resnet)
    if prefix is None or "teacher." not in prefix:
        return 0
    heads = any(f".{name}" in f".{k}" for k in shapes for name in HEADS)
    return 3 if "dino_loss.center" in shapes else 2 * heads


def convert(state, meta):
    home = alone_resnet(state)
    prefix = state.pick(and_alone(NETWORKS, home), is_resnet)
    if home is not None:
        state.assume("block")
    mine = prefix.removesuffix("backbone.")
    reasons = {mine + head: "head" for head in HEADS if mine} | {"dino_loss.": "loss"} | OTHER.get(mine, {})
    return resnet(state, prefix, reasons, **IMAGENET)
