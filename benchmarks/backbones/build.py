"""A card's encoder."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ...pretrain.common.card import Card
from . import own
from .conv import ConvEncoder
from .convnext import ConvNextEncoder
from .encoder import Encoder
from .eva import EvaEncoder
from .swinv2 import SwinV2Encoder
from .xcit import XcitEncoder

ENCODERS = {
    "vit": Encoder,
    "resnet": ConvEncoder,
    "swin": ConvEncoder,
    "swinv2": SwinV2Encoder,
    "xcit": XcitEncoder,
    "eva": EvaEncoder,
    "convnext": ConvNextEncoder,
}


def encoder_for(card: Card) -> nn.Module:
    """The empty network of a card: `Encoder` for a ViT, `ConvEncoder` for a ResNet or Swin, and so on. (That of a
    user's own needs its weights: `encoder_with`.)

    All have `card`, `fingerprint`, `name`, `accounting`, `assign(weights)`, `named_shapes()`, `normalise(images)` and
    `forward(images, blocks, norm) -> Features`.
    """
    return ENCODERS[card.family](card)


def encoder_with(card: Card, weights: Mapping[str, Tensor]) -> nn.Module:
    """The encoder of a card with these weights, which become its own. The caller has checked names and shapes."""
    encoder = _empty(card, weights)
    encoder.assign(weights)
    return encoder


def _empty(card: Card, weights: Mapping[str, Tensor]) -> nn.Module:
    """The network for these weights, without memory where it is one of ours."""
    if card.own:
        return own.empty(card, weights)
    with torch.device("meta"):
        return encoder_for(card)


def wanted_shapes(card: Card, weights: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the weights that a card's network takes; the given ones are only looked at."""
    return _empty(card, weights).named_shapes()


def tried(card: Card, weights: Mapping[str, Tensor]) -> Card:
    """The card; that of a user's own network after it was shown pictures (own.tried). Raises UserError."""
    return own.tried(encoder_with(card, weights)) if card.own else card
