"""What the formats of ResNets and Swins share: finding the network, its card from the shapes, timm's names."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import takewhile

from ...pretrain.common.card import IMAGENET_MEAN, IMAGENET_STD, LIMITS, Card
from ...pretrain.common.errors import UserError
from ..checkpoints.state import broken
from . import drop  # noqa: F401  (with the rest of what these formats need)

RESNET = {"conv1.weight", "bn1.running_mean", "layer1.0.conv1.weight", "layer4.0.conv1.weight"}
SWIN = {
    "patch_embed.proj.weight",
    "layers.0.blocks.0.attn.relative_position_bias_table",
    "layers.1.blocks.0.mlp.fc1.bias",
}
RESNET_PARTS = ("conv1.", "bn1.", "layer1.", "layer2.", "layer3.", "layer4.")
SWIN_PARTS = ("patch_embed.", "layers.", "norm.", "absolute_pos_embed")
COUNTER = "num_batches_tracked"  # of batch norm: how many batches its statistics are of; only training looks at it
WRAPPED = ("", "state_dict.", "model.")
IMAGENET = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}


def networks(keys: Iterable[str], marks: set[str]) -> list[str]:
    """Prefixes below which all names of `marks` (RESNET or SWIN) are; the shortest first."""
    keys = set(keys)
    one = min(marks)
    found = {k.removesuffix(one) for k in keys if k.endswith(one) and k.removesuffix(one)[-1:] in ("", ".")}
    return sorted((p for p in found if all(p + mark in keys for mark in marks)), key=lambda p: (len(p), p))


def places(keys: Iterable[str], marks: set[str], roles: Mapping[str | None, Sequence[str]]) -> dict:
    """role -> prefixes of such networks. roles: role -> how the prefix may end; "": nothing but a wrapper."""
    prefixes = networks(keys, marks)
    return {
        role: [p for end in ends for p in prefixes if (f".{p}".endswith(f".{end}") if end else p in WRAPPED)]
        for role, ends in roles.items()
    }


def find(keys: Iterable[str], marks: set[str], roles: Mapping[str | None, Sequence[str]]) -> str | None:
    """Prefix of the network that the format evaluates by default, or None."""
    return next((prefix for found in places(keys, marks, roles).values() for prefix in found), None)


def pick(state, marks: set[str], roles: Mapping[str | None, Sequence[str]]) -> str:
    """Prefix of the network to evaluate: the one that the user asked for, or the default. Raises UserError for none,
    and for a default that is there only in part."""
    prefix = state.pick(places(state, marks, roles), lambda names: marks <= names.keys())
    for role in takewhile(lambda role: role != state.network and not state.wanted, roles):
        if parts := sum(any(end and f".{end}" in f".{key}" for end in roles[role]) for key in state):
            raise broken(role, parts, state.network)
    return prefix


def own(keys: Iterable[str], prefix: str, parts: tuple[str, ...]) -> dict[str, str]:
    """Names below a prefix that begin with one of `parts`, without the prefix -> full names."""
    names = {k.removeprefix(prefix): k for k in keys if k.startswith(prefix)}
    return {name: key for name, key in names.items() if name.startswith(parts)}


def only(keys: Iterable[str], prefix: str, parts: tuple[str, ...]) -> bool:
    """Do all names below the prefix begin with one of `parts`?"""
    return all(k.removeprefix(prefix).startswith(parts) for k in keys if k.startswith(prefix))


def counters(keys: Iterable[str]) -> dict[str, str]:
    """Batch norm's counters of batches, to be dropped."""
    return {k: "counter" for k in keys if k.rpartition(".")[2] == COUNTER}


def resnet(state, prefix: str, dropped: Mapping[str, str], **known) -> tuple[dict, Card, dict[str, str]]:
    """What `convert` returns for a ResNet in torchvision's names, which are timm's, below a prefix."""
    dropped = dict(dropped) | counters(state)
    names = own(state, prefix, RESNET_PARTS)
    weights = {name: state[key] for name, key in names.items() if key not in dropped}
    return weights, resnet_card({k: tuple(v.shape) for k, v in weights.items()}, **known), dropped


def resnet_card(shapes: Mapping[str, tuple], **known) -> Card:
    """A ResNet's card from the shapes of its timm-named weights; `known` are the facts that the format knows.

    Raises UserError (without the file's name) when the shapes cannot be a ResNet's.
    """
    _no_empty(shapes)
    try:
        stem = shapes["conv1.weight"]
        blocks = tuple(_count(shapes, rf"layer{i}\.(\d{{1,9}})\.") for i in (1, 2, 3, 4))
        last = "conv3" if "layer1.0.conv3.weight" in shapes else "conv2"
        widths = tuple(shapes[f"layer{i}.0.{last}.weight"][0] for i in (1, 2, 3, 4))
        inner, per_group = shapes["layer1.0.conv2.weight"][:2]
    except (KeyError, ValueError, IndexError) as error:
        raise UserError(f"not a ResNet: no usable {error}") from None
    if len(stem) != 4 or stem[1:] != (3, 7, 7):
        raise UserError(f"not a ResNet whose stem is one 7x7 convolution on RGB: conv1 is {list(stem)}")
    facts = {"block": "bottleneck, stride on the 3x3" if last == "conv3" else "basic"}
    planes = widths[0] // 4
    if last == "conv3" and per_group and (inner, per_group) != (planes, planes):
        groups = max(inner // per_group, 1)
        base_width = round(inner / groups * 64 / max(planes, 1))
        facts |= {"groups": groups if groups > 1 else None, "base_width": base_width if base_width != 64 else None}
    facts |= {"blocks": blocks, "stem_channels": stem[0], "widths": widths, "bn_eps": 1e-5}
    return Card("resnet", **(facts | known))


def swin_names(names: Iterable[str]) -> dict[str, str]:
    """timm's name -> official or timm's: merging opens timm's stages and closes the official ones."""
    names = list(names)
    if "layers.0.downsample.reduction.weight" not in names:
        return {name: name for name in names}
    merging = re.compile(r"layers\.(\d{1,9})\.downsample\.")
    return {merging.sub(lambda m: f"layers.{int(m[1]) + 1}.downsample.", name): name for name in names}


def swin(state, prefix: str, dropped: Mapping[str, str], **known) -> tuple[dict, Card, dict[str, str]]:
    """What `convert` returns for a Swin in official or timm's names below a prefix.

    Tables of relative positions are weights; the index into them and the masks of shifted windows are the same for
    every Swin of that window, and are made anew (masks for each image size). Raises UserError for another index.
    """
    dropped, names = dict(dropped), own(state, prefix, SWIN_PARTS)
    for name, key in list(names.items()):
        if name.endswith(("relative_position_index", "attn_mask")):
            if name.endswith("index"):
                _check_index(name, state[key])
            dropped[key] = "rebuilt"
    renamed = swin_names(name for name, key in names.items() if key not in dropped)
    weights = {new: state[names[name]] for new, name in renamed.items()}
    return weights, swin_card({k: tuple(v.shape) for k, v in weights.items()}, **known), dropped


def _check_index(name: str, index) -> None:
    """Is this the index that every Swin has: row times (2 window - 1) plus column of the difference of positions?"""
    import torch

    side = math.isqrt(index.shape[0]) if index.dim() == 2 else 0
    if not 1 <= side <= LIMITS["window"] or tuple(index.shape) != (side * side, side * side):
        raise UserError(f"{name} is {list(index.shape)}, not that of a square window")
    at = torch.cartesian_prod(torch.arange(side), torch.arange(side))
    away = at[:, None] - at[None] + side - 1
    if not torch.equal(index.long(), away[..., 0] * (2 * side - 1) + away[..., 1]):
        raise UserError(f"{name} orders relative positions in another way than Swin does")


def swin_card(shapes: Mapping[str, tuple], **known) -> Card:
    """A Swin's card from the shapes of its timm-named weights; `known` are the facts that the format knows.

    Raises UserError (without the file's name) when the shapes cannot be a Swin's.
    """
    _no_empty(shapes)
    try:
        dim, channels, patch, patch_w = shapes["patch_embed.proj.weight"]
        stages = _count(shapes, r"layers\.(\d{1,9})\.")
        depths = tuple(_count(shapes, rf"layers\.{i}\.blocks\.(\d{{1,9}})\.") for i in range(stages))
        first = [f"layers.{i}.blocks.0." for i in range(stages)]
        rows = shapes[first[0] + "attn.relative_position_bias_table"][0]
        heads = tuple(shapes[name + "attn.relative_position_bias_table"][1] for name in first)
        hidden = shapes[first[0] + "mlp.fc1.weight"][0]
    except (KeyError, ValueError, IndexError) as error:
        raise UserError(f"not a Swin: no usable {error}") from None
    window = (math.isqrt(rows) + 1) // 2
    if channels != 3 or patch != patch_w or (2 * window - 1) ** 2 != rows or not 1 <= window <= LIMITS["window"]:
        raise UserError(f"not a Swin on RGB: patch embedding {dim}x{channels}x{patch}x{patch_w}, {rows} positions")
    facts = {
        "patch": patch,
        "window": window,
        "dim": dim,
        "depths": depths,
        "heads": heads,
        "final_norm": "norm.weight" in shapes,
        "class_token": False,
        "patch_norm": "patch_embed.norm.weight" in shapes,
        "absolute_pos": "absolute_pos_embed" in shapes,
        "mlp_ratio": hidden / dim,
        "qkv_bias": first[0] + "attn.qkv.bias" in shapes,
        "norm_eps": 1e-5,
        "sizes": "padded",
    }
    return Card("swin", **(facts | known))


def _count(shapes: Iterable[str], pattern: str) -> int:
    """How many numbered members there are. Raises ValueError unless they are numbered 0, 1, 2 ... (1000 at most)."""
    numbers = {int(m[1]) for k in shapes if (m := re.match(pattern, k))}
    if not numbers or numbers != set(range(len(numbers))) or len(numbers) > LIMITS["blocks"]:
        raise ValueError(f"numbering of {pattern.partition('(')[0]}")
    return len(numbers)


def _no_empty(shapes: Mapping[str, tuple]) -> None:
    if empty := [name for name, shape in shapes.items() if 0 in shape]:
        raise UserError(f"{empty[0]} has no elements: {list(shapes[empty[0]])}")
