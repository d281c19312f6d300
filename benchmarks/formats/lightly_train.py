"""LightlyTrain: a ViT or ResNet of its Lightning checkpoints, in timm's, torchvision's, DINOv2's or DINOv3's names.

Source: lightly-ai/lightly-train d445dcd, src/lightly_train/_methods/, _models/ (embedding_model.py, timm/timm.py,
torchvision/resnet.py), _checkpoint.py. Downstream is what the library itself exports: the teacher that follows the
student, or the student of a distillation. Its image vector of timm's ViT is the mean of the patches. Exported files
(exported_last.pt) hold the network alone, and are read by the formats of its names.
"""

import re

from ..checkpoints.state import State
from ..checkpoints.stated import table_in
from . import IMAGENET, below, dinov2, dinov3, timm, timm_resnet, torchvision_resnet

INNER = "embedding_model.wrapped_model._model."
FEATURES = "embedding_model.wrapped_model._features."  # a ResNet of torchvision's
BESIDE = re.compile(r"(?:\w+_)?(?:heads?|head_\w+|criterion|loss|queue|embedding_model|encoder|memory_bank)")
READERS = (dinov3, dinov2, timm, torchvision_resnet, timm_resnet)  # those that know more of the names go first


def networks(names) -> dict:
    """As `State.pick` wants them. A teacher that was there before, of which no head is trained, comes last."""
    order = ("teacher", "student") if any("teacher_" in k and "head." in k for k in names) else ("student", "teacher")
    found = {side: [f"{side}_{INNER}", f"{side}_{FEATURES}"] for side in order} | {None: [INNER, FEATURES]}
    return {side: [f"state_dict.{p}" for p in prefixes] + prefixes for side, prefixes in found.items()}


def reader(shapes):
    """The format that knows these names, or None."""
    return next((r for r in READERS if r.claims(shapes, {}) > 0), None)


def claims(shapes, meta) -> int:
    prefixes = [p for choices in networks(shapes).values() for p in choices if any(k.startswith(p) for k in shapes)]
    return 3 * any(reader({k: shapes[p + k] for k in below(shapes, p)}) is not None for p in prefixes)


def convert(state, meta):
    prefix = state.pick(networks(state), lambda names: reader({k: state.shapes[v] for k, v in names.items()}))
    inner = State({k: state.refs[v] for k, v in state.below(prefix).items()})
    weights, card, dropped = reader(inner.shapes).convert(inner, {})
    if card.readout == "token" and reader(inner.shapes) is timm:
        card = card.override({"readout": "mean"})
    state.used |= {prefix + name for name in inner.used}
    state.assume(*inner.assumed - {"readout"})
    dropped = {prefix + name: why for name, why in dropped.items()}
    home = "state_dict." if prefix.startswith("state_dict.") else ""
    for name, key in state.below(home).items():
        if not key.startswith(prefix) and BESIDE.fullmatch(part := name.partition(".")[0]):
            dropped[key] = "the other network" if part.endswith(("model", "encoder")) else "head"
    said = table_in(meta, "lightly_train", "normalize_args")
    return weights, card.override({k: said.get(k) or v for k, v in IMAGENET.items()}), dropped
