"""torchvision's Swin: a state dict, or the file of its training code (`model`).

Source: pytorch/vision 0.29, torchvision/models/swin_transformer.py, references/classification/train.py; mean and std of
its weights' transforms. Its Swin V2 has other tensors and is not read.
"""

import re

from . import alone, below, prefix_of
from ._conv import IMAGENET, drop, only, swin

MARKS = {"features.0.0.weight", "features.1.0.attn.relative_position_bias_table"}
PARTS = ("features.", "norm.", "head.")
NETWORKS = {None: ("", "model.")}
NAMES = (
    (r"^features\.0\.0\.", "patch_embed.proj."),
    (r"^features\.0\.2\.", "patch_embed.norm."),
    (r"\.mlp\.0\.", ".mlp.fc1."),
    (r"\.mlp\.3\.", ".mlp.fc2."),
)


def home(keys) -> str | None:
    """Prefix of the network: of one that is alone below any, or of `model` beside its average."""
    prefix = alone(keys, "features.0.0.weight")
    fit = prefix is not None and set(below(keys, prefix)) >= MARKS
    return prefix if fit else prefix_of(keys, NETWORKS, MARKS.issubset)


def claims(shapes, meta) -> int:
    prefix = home(shapes)
    return 3 * (prefix is not None and only(shapes, prefix, PARTS))


def convert(state, meta):
    prefix = state.pick({None: (home(state) or "",)}, MARKS.issubset)
    dropped = drop(state, {f"{prefix}head.": "head"} | ({"model_ema.": "EMA copy"} if prefix == "model." else {}))
    names = {official(name): key for name, key in state.below(prefix).items() if key not in dropped}
    tensors = {name: squared(name, state[key]) for name, key in names.items()}
    weights, card, rebuilt = swin(tensors, "", {}, sizes="padded_axes", **IMAGENET)
    return weights, card, dropped | {names[name]: why for name, why in rebuilt.items()}


def official(name: str) -> str:
    """The official code's name: odd members of `features` are stages, even ones merge."""
    for old, new in NAMES:
        name = re.sub(old, new, name)
    if not (found := re.match(r"features\.(\d{1,4})\.(.+)", name)):
        return name
    place, rest = int(found[1]), found[2]
    return f"layers.{place // 2}.blocks.{rest}" if place % 2 else f"layers.{place // 2 - 1}.downsample.{rest}"


def squared(name: str, value):
    """The index of relative positions, which is flat here, as [tokens, tokens]."""
    side = round(value.numel() ** 0.5)
    flat = name.endswith("relative_position_index") and value.dim() == 1 and side * side == value.numel()
    return value.view(side, side) if flat else value
