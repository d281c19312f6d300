"""lightly: a Lightning checkpoint of its benchmarks and examples with torchvision's ResNet, or its numbered children.

Source: lightly-ai/lightly, benchmarks/imagenet/resnet50/, examples/pytorch_lightning/ (whose backbone is a Sequential
of a ResNet's children: 0 and 1 are the stem, 4 to 7 the stages). Evaluated is what the module's `forward` uses,
`backbone`: the teacher of DINO, the network that is trained by gradients of the others.
"""

import re

from . import alone, below, lightly
from ._conv import IMAGENET, drop, is_resnet, prefix_of, resnet

HOMES = ("state_dict.backbone.", "backbone.")
CHILDREN = {"0.weight", "1.running_mean", "4.0.conv1.weight", "7.0.conv1.weight"}
BESIDE = re.compile(r"(?:\w+_)?(?:heads?|classifier|criterion|prototypes|queues|memory_bank)(?:_momentum)?")
OTHER = re.compile(r"(?:\w+_)?backbone(?:_\w+)?")
ASSUMED = ("mean", "std")


def is_children(names) -> bool:
    return CHILDREN.issubset(names) and all(re.match(r"[0-9]\.", name) for name in names)


def is_lightly(names) -> bool:
    return is_resnet(names) or is_children(names)


def networks(keys) -> dict:
    """lightly's, or the one of a file that holds nothing else."""
    prefix = alone(keys, "4.0.conv1.weight")
    return lightly.networks(keys) if prefix is None or prefix in HOMES else {None: (prefix,)}


def claims(shapes, meta) -> int:
    if (prefix := prefix_of(shapes, networks(shapes), is_lightly)) is None:
        return 0
    home = "state_dict." if prefix.startswith("state_dict.") else ""
    own = any(k.startswith((f"{home}projection_head.layers.", f"{home}online_classifier.linear.")) for k in shapes)
    return 2 * own or int(is_children(below(shapes, prefix)))


def convert(state, meta):
    prefix = state.pick(networks(state), is_lightly)
    home, reasons = "state_dict." if prefix.startswith("state_dict.") else "", {}
    for part in {name.partition(".")[0] for name in state.below(home)}:
        if f"{home}{part}." != prefix and (BESIDE.fullmatch(part) or OTHER.fullmatch(part)):
            reasons[f"{home}{part}."] = "head" if BESIDE.fullmatch(part) else "the other network"
    dropped = drop(state, reasons)
    names = {torchvision_name(name): key for name, key in state.below(prefix).items() if key not in dropped}
    weights, card, more = resnet({name: state[key] for name, key in names.items()}, "", {}, **IMAGENET)
    return weights, card, dropped | {names[name]: why for name, why in more.items()}


def torchvision_name(name: str) -> str:
    """torchvision's name of a child's tensor; as it is where it is one already."""
    number, _, rest = name.partition(".")
    parts = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
    return f"{parts[number]}.{rest}" if number in parts else name
