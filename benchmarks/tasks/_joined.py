"""What a linear classifier sees of a network."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ...pretrain.common.errors import UserError
from ._features import effective, image_vector


@dataclass(frozen=True)
class Joined:
    """The class tokens of the last `blocks` blocks and, with avgpool, the mean patch token, all after the final norm;
    blocks 0: the image vector."""

    blocks: int
    avgpool: bool

    def __call__(self, encoder, images: Tensor) -> Tensor:
        """Normalised images [B, 3, S, S] -> [B, D * (blocks + avgpool)]"""
        if not self.blocks:
            return image_vector(encoder, images)
        depth = encoder.card.depth
        raw = encoder.tokens(images, list(range(depth - self.blocks, depth)))
        normed = [encoder.vit.norm(raw[b]) for b in range(depth - self.blocks, depth)]
        pooled = [normed[-1][:, encoder.prefix :].mean(1)] if self.avgpool else []
        return torch.cat([*(x[:, 0] for x in normed), *pooled], 1)

    @property
    def name(self) -> str:
        if not self.blocks:
            return "image vector"
        return f"class tokens of {self.blocks} blocks" + (" and mean patch token" if self.avgpool else "")

    @torch.inference_mode()
    def width(self, encoder, side: int) -> int:
        """Numbers that an image of side x side pixels gives."""
        device = next(encoder.parameters()).device
        return self(encoder, torch.zeros(1, 3, side, side, device=device)).shape[1]

    def in_force(self, encoder, side: int) -> dict:
        """What the network decides, for the record of images of side x side pixels."""
        facts = effective(encoder, side) | {"features": self.name}
        return facts if self.blocks else facts | {"readout": encoder.card.readout}


def joined(card, p) -> Joined:
    """The features for this network by the values of a protocol (linear.Frozen). Raises UserError for more blocks than
    it has."""
    if card.family != "vit" or not card.class_token:
        if p.blocks is not None or p.avgpool is not None:
            raise UserError("blocks and avgpool are for networks with a class token; this one gives its image vector")
        return Joined(0, False)
    small = card.dim < 768
    blocks, avgpool = p.blocks or min(4 if small else 1, card.depth), (not small) if p.avgpool is None else p.avgpool
    if blocks > card.depth:
        raise UserError(f"blocks={blocks}: the network has {card.depth}; nearest: {card.depth}")
    return Joined(blocks, avgpool)
