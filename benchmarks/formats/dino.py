"""DINO: full training checkpoint, released backbone file, or its backbone alone.

Source: facebookresearch/dino 7c446df, main_dino.py (save_dict), utils.py (MultiCropWrapper), vision_transformer.py.
Downstream uses the teacher. Copies of the released full file from before June 2021 have no `backbone.` prefix and a
head called `projection_head`; that form is supported by its description only.
"""

from ...pretrain.common.card import IMAGENET_MEAN, IMAGENET_STD
from ...pretrain.common.shapes import vit_card
from . import below, drop, find, fits, is_dino, take

NETWORKS = {
    "teacher": ("teacher.backbone.", "teacher."),
    "student": ("student.backbone.", "student."),
    None: ("backbone.", ""),
}
PREFIXES = tuple(p for prefixes in NETWORKS.values() for p in prefixes)
HEADS = ("head.mlp.", "head.last_layer.", "projection_head.")
ALWAYS = {"qkv_bias": True}


def claims(shapes, meta) -> int:
    prefix = find(shapes, PREFIXES, is_dino)
    centre = shapes.get("dino_loss.center")
    # Code bases that share the rest of the layout: iBOT and SERE, SelfPatch, PW-Self (a centre for each token).
    others = any(k.startswith(("ibot_loss.", "dino_loss.patch_center")) for k in shapes)
    if prefix is None or others or not fits(below(shapes, prefix), HEADS) or (centre and per_token(centre)):
        return 0
    if prefix == "":
        return int(fits(shapes))
    return 3 if centre else 2


def per_token(centre: tuple[int, ...]) -> bool:
    """Is a loss's centre [.., tokens, K], as PW-Self's, and not [1, K]?"""
    return any(n != 1 for n in centre[:-1])


def convert(state, meta):
    return read(state, NETWORKS, dict.fromkeys(HEADS, "head"))


def read(state, networks, own: dict[str, str], inner: dict[str, str] | None = None):
    """What `convert` returns for DINO's ViT. own: parts of a network beside its backbone -> reason to drop them;
    inner: parts of the backbone."""
    prefix = state.pick(networks, is_dino)
    dropped = drop(state, {prefix + name: why for name, why in (inner or {}).items()})
    dropped |= beside(state, prefix, own) if prefix else {}
    weights, shapes = take(state, prefix, dropped)
    return weights, vit_card(shapes, pos_resize="dino", mean=IMAGENET_MEAN, std=IMAGENET_STD), dropped


def beside(state, prefix: str, own: dict[str, str]) -> dict[str, str]:
    """Everything beside the backbone in a checkpoint of this family: `own` parts of the network, the other one, loss.

    own: beginning of a name below `teacher.` or `student.` (or of the file, where it has one network) -> reason.
    """
    side = prefix.partition(".")[0] + "." if prefix.startswith(("teacher.", "student.")) else ""
    reasons = {side + name: why for name, why in own.items()} | {"dino_loss.": "loss", "ibot_loss.": "loss"}
    other = {"teacher.": "student.", "student.": "teacher."}.get(side)
    if other:
        reasons[other] = other.rstrip(".")
    return drop(state, reasons)
