"""LightlyTrain: the ResNet of its Lightning checkpoints, torchvision's or timm's.

Source: lightly-ai/lightly-train d445dcd, src/lightly_train/_methods/, _models/embedding_model.py, _models/torchvision/
resnet.py. Downstream is what the library itself exports: the teacher that follows the student, or the student of a
distillation, whose teacher has no head. Its exported files hold the network alone, in torchvision's or timm's names.
"""

import re

from ..checkpoints.stated import table_in
from ._conv import IMAGENET, is_any_resnet, prefix_of, resnet

INNER = tuple(f"embedding_model.wrapped_model.{name}." for name in ("_features", "_model"))
BESIDE = re.compile(r"(?:\w+_)?(?:heads?|head_\w+|criterion|loss|queue\w*|embedding_model|encoder|memory_bank)")


def networks(keys) -> dict:
    """As `State.pick` wants them."""
    order = ("teacher", "student") if any("teacher_" in k and "head." in k for k in keys) else ("student", "teacher")
    found = {side: [f"{side}_{inner}" for inner in INNER] for side in order} | {None: list(INNER)}
    return {side: [f"{top}{p}" for top in ("state_dict.", "") for p in prefixes] for side, prefixes in found.items()}


def claims(shapes, meta) -> int:
    return 3 * (prefix_of(shapes, networks(shapes), is_any_resnet) is not None)


def convert(state, meta):
    prefix = state.pick(networks(state), is_any_resnet)
    home, mine = "state_dict." if prefix.startswith("state_dict.") else "", prefix.partition("wrapped_model.")[0]
    reasons = {f"{mine}embed_head.": "head", f"{prefix}fc.": "head"}
    for part in {name.partition(".")[0] for name in state.below(home)}:
        if BESIDE.fullmatch(part) and f"{home}{part}." != mine:
            reasons[f"{home}{part}."] = "the other network" if part.endswith(("model", "encoder")) else "head"
    said = table_in(meta, "lightly_train", "normalize_args")
    state.assume(*(key for key in IMAGENET if not said.get(key)))
    weights, card, dropped = resnet(state, prefix, reasons, **IMAGENET)
    return weights, card.override({k: said[k] for k in IMAGENET if said.get(k)}), dropped
