"""What the formats of ResNets and Swins share: finding the network, its card from the shapes, timm's names."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import takewhile

import torch

from ...pretrain.common.card import LIMITS, Card
from ...pretrain.common.errors import UserError
from ...pretrain.common.shapes import resnet_card, swin_card
from ..checkpoints.state import broken
from . import IMAGENET, drop, shapes_of, under  # noqa: F401  (with the rest of what these formats need)

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
ALONE = {None: ("",)}  # a file of one network

Roles = Mapping[str | None, Sequence[str]]  # role -> how its prefix may end; "": nothing but a wrapper


def places(keys: Iterable[str], marks: set[str], roles: Roles) -> dict[str | None, list[str]]:
    """role -> prefixes below which all names of `marks` (RESNET, SWIN ...) are; the shortest first."""
    keys, one = set(keys), min(marks)
    found = {k.removesuffix(one) for k in keys if k.endswith(one) and k.removesuffix(one)[-1:] in ("", ".")}
    prefixes = sorted((p for p in found if all(p + mark in keys for mark in marks)), key=lambda p: (len(p), p))
    return {
        role: [p for end in ends for p in prefixes if (f".{p}".endswith(f".{end}") if end else p in WRAPPED)]
        for role, ends in roles.items()
    }


def default_prefix(keys: Iterable[str], marks: set[str], roles: Roles) -> str | None:
    """Prefix of the network that the format evaluates by default, or None."""
    return next((prefix for found in places(keys, marks, roles).values() for prefix in found), None)


def pick(state, marks: set[str], roles: Roles) -> str:
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


def resnet(state, prefix: str, reasons: Mapping[str, str], **known) -> tuple[dict, Card, dict[str, str]]:
    """What `convert` returns for a ResNet in torchvision's names, which are timm's, below a prefix.

    reasons: beginnings of names -> why they are dropped. known: the card's fields that shapes do not tell.
    """
    dropped = drop(state, reasons) | {k: "counter" for k in state if k.rpartition(".")[2] == COUNTER}
    names = own(state, prefix, RESNET_PARTS)
    weights = {name: state[key] for name, key in names.items() if key not in dropped}
    return weights, resnet_card(shapes_of(weights), **known), dropped


def swin_names(names: Iterable[str]) -> dict[str, str]:
    """timm's name -> official or timm's: merging opens timm's stages and closes the official ones."""
    names = list(names)
    if "layers.0.downsample.reduction.weight" not in names:
        return {name: name for name in names}
    merging = re.compile(r"layers\.(\d{1,9})\.downsample\.")
    return {merging.sub(lambda m: f"layers.{int(m[1]) + 1}.downsample.", name): name for name in names}


def swin(state, prefix: str, reasons: Mapping[str, str], **known) -> tuple[dict, Card, dict[str, str]]:
    """What `convert` returns for a Swin in official or timm's names below a prefix; arguments as of `resnet`.

    Tables of relative positions are weights; the index into them and the masks of shifted windows are the same for
    every Swin of that window, and are made anew (masks for each image size). Raises UserError for another index.
    """
    dropped, names = drop(state, reasons), own(state, prefix, SWIN_PARTS)
    for name, key in names.items():
        if name.endswith("relative_position_index"):
            _check_index(name, state[key])
        if name.endswith(("relative_position_index", "attn_mask")):
            dropped[key] = "rebuilt"
    renamed = swin_names(name for name, key in names.items() if key not in dropped)
    weights = {new: state[names[name]] for new, name in renamed.items()}
    return weights, swin_card(shapes_of(weights), **known), dropped


def _check_index(name: str, index: torch.Tensor) -> None:
    """Is this the index that every Swin has: row times (2 window - 1) plus column of the difference of positions?"""
    side = math.isqrt(index.shape[0]) if index.dim() == 2 else 0
    if not 1 <= side <= LIMITS["window"] or tuple(index.shape) != (side * side, side * side):
        raise UserError(f"{name} is {list(index.shape)}, not that of a square window")
    at = torch.cartesian_prod(torch.arange(side), torch.arange(side))
    away = at[:, None] - at[None] + side - 1
    if not torch.equal(index.long(), away[..., 0] * (2 * side - 1) + away[..., 1]):
        raise UserError(f"{name} orders relative positions in another way than Swin does")
