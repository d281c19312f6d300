"""What the formats of ResNets and Swins share: finding the network, its card from the shapes, timm's names."""

import math
import re
from collections.abc import Collection, Iterable, Mapping

import torch

from ...pretrain.common.card import MAX_WINDOW, Card
from ...pretrain.common.errors import UserError
from ...pretrain.common.shapes import DEEP_STEM, resnet_card, shapes_of, swin_card
from ..checkpoints.state import BARE
from . import IMAGENET, alone, and_alone, below, drop, prefix_of, under  # noqa: F401  (with the rest of what these formats need)

RESNET = {"conv1.weight", "bn1.running_mean", "layer1.0.conv1.weight", "layer4.0.conv1.weight"}
DEEP_RESNET = {*DEEP_STEM, *RESNET} - {"conv1.weight"}  # timm's names of a stem of three convolutions
SWIN = {
    "patch_embed.proj.weight",
    "layers.0.blocks.0.attn.relative_position_bias_table",
    "layers.1.blocks.0.mlp.fc1.bias",
}
is_resnet, is_swin = RESNET.issubset, SWIN.issubset  # do the names hold one? a ResNet: of the plain stem
RESNET_PARTS = ("conv1.", "bn1.", "layer1.", "layer2.", "layer3.", "layer4.")
SWIN_PARTS = ("patch_embed.", "layers.", "norm.", "absolute_pos_embed")
COUNTER = "num_batches_tracked"  # of batch norm: how many batches its statistics are of; only training looks at it
ALONE = {None: BARE}  # a file of one network


def is_any_resnet(keys: Collection[str]) -> bool:
    """Do the names hold a ResNet in timm's names, of the plain stem or of three convolutions?"""
    return is_resnet(keys) or DEEP_RESNET.issubset(keys)


def alone_resnet(keys: Collection[str], also: tuple[str, ...] = (), test=is_resnet) -> str | None:
    """`alone` of a ResNet in torchvision's names, of whose tensors others begin with one of `also`."""
    return _alone(keys, "layer1.0.conv1.weight", test, (*RESNET_PARTS, *also))


def alone_swin(keys: Collection[str], also: tuple[str, ...] = ()) -> str | None:
    """`alone` of a Swin in official or timm's names, of whose tensors others begin with one of `also`."""
    return _alone(keys, "patch_embed.proj.weight", is_swin, (*SWIN_PARTS, *also))


def _alone(keys: Collection[str], mark: str, test, parts: tuple[str, ...]) -> str | None:
    prefix = alone(keys, mark)
    return prefix if prefix is not None and test(below(keys, prefix)) and only(keys, prefix, parts) else None


def wrapped(*ends: str) -> tuple[str, ...]:
    """Prefixes of a network that end like this, in a wrapper of a trainer's or in none."""
    return tuple(wrapper + end for end in ends for wrapper in BARE)


def own(keys: Iterable[str], prefix: str, parts: tuple[str, ...]) -> dict[str, str]:
    """Names below a prefix that begin with one of `parts`, without the prefix -> full names."""
    return {k.removeprefix(prefix): k for k in keys if k.startswith(tuple(prefix + part for part in parts))}


def only(keys: Iterable[str], prefix: str, parts: tuple[str, ...]) -> bool:
    """Do all names below the prefix begin with one of `parts`?"""
    return all(name.startswith(parts) for name in below(keys, prefix))


def resnet(state, prefix: str, reasons: Mapping[str, str], **known) -> tuple[dict, Card, dict[str, str]]:
    """What `convert` returns for a ResNet in torchvision's names, which are timm's, below a prefix.

    reasons: beginnings of names -> why they are dropped. known: the card's fields that shapes do not tell.
    """
    dropped = drop(state, reasons) | {k: "counter" for k in state if k.rpartition(".")[2] == COUNTER}
    names = own(state, prefix, RESNET_PARTS)
    weights = {name: state[key] for name, key in names.items() if key not in dropped}
    return weights, resnet_card(shapes_of(weights), **known), dropped


def assume_strides(state, names: Collection[str]) -> None:
    """Where nothing says whether a bottleneck's stride is in its 1x1 or 3x3 convolution. names: torchvision's."""
    if any(name.endswith("layer1.0.conv3.weight") for name in names):
        state.assume("block")


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
            check_index(name, state[key])
        if name.endswith(("relative_position_index", "attn_mask")):
            dropped[key] = "rebuilt"
    renamed = swin_names(name for name, key in names.items() if key not in dropped)
    weights = {new: state[names[name]] for new, name in renamed.items()}
    return weights, swin_card(shapes_of(weights), **known), dropped


def check_index(name: str, index: torch.Tensor) -> None:
    """Is this the index that every Swin has: row times (2 window - 1) plus column of the difference of positions?"""
    side = math.isqrt(index.shape[0]) if index.dim() == 2 else 0
    if not 1 <= side <= MAX_WINDOW or tuple(index.shape) != (side * side, side * side):
        raise UserError(f"{name} is {list(index.shape)}, not that of a square window")
    at = torch.cartesian_prod(torch.arange(side), torch.arange(side))
    away = at[:, None] - at[None] + side - 1
    if not torch.equal(index.long(), away[..., 0] * (2 * side - 1) + away[..., 1]):
        raise UserError(f"{name} orders relative positions in another way than Swin does")
