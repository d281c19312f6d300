"""A card's encoder."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ...pretrain.common.card import Card
from .conv import ConvEncoder
from .convnext import ConvNextEncoder
from .encoder import Encoder
from .eva import EvaEncoder
from .xcit import XcitEncoder

ENCODERS = {
    "vit": Encoder,
    "resnet": ConvEncoder,
    "swin": ConvEncoder,
    "xcit": XcitEncoder,
    "eva": EvaEncoder,
    "convnext": ConvNextEncoder,
}


def encoder_for(card: Card) -> nn.Module:
    """The empty network of a card: `Encoder` for a ViT, `ConvEncoder` for a ResNet or Swin, and so on.

    All have `card`, `fingerprint`, `name`, `accounting`, `assign(weights)`, `named_shapes()`, `normalise(images)` and
    `forward(images, blocks, norm) -> Features`.
    """
    return ENCODERS[card.family](card)


def encoder_with(card: Card, weights: Mapping[str, Tensor]) -> nn.Module:
    """The encoder of a card with these weights, which become its own. The caller has checked names and shapes."""
    with torch.device("meta"):
        encoder = encoder_for(card)
    encoder.assign(weights)
    return encoder
