"""XCiT over timm's network: blocks of cross-covariance attention, and class attention after them."""

from functools import partial

import torch
from timm.models.xcit import Xcit
from torch import Tensor, nn

from ...pretrain.common.card import Card
from ...pretrain.common.errors import UserError
from .base import FrozenEncoder


class XcitEncoder(FrozenEncoder):
    """An XCiT, of which a `block` is one of the patches' blocks. Its image vector is the normed class token.

    strides, widths: stride and channels of each block's map, the same for all; width: of the image vector.

    The map of a block is ceil(H / patch) x ceil(W / patch): its stem is of convolutions. The final norm of the last
    block's map comes after the class attention, which changes patches too (timm 1.0.31, `forward_features`). Positions
    are computed for every grid.
    """

    network = "xcit"

    def __init__(self, card: Card):
        super().__init__(card)
        if card.act != "gelu (erf)":
            raise UserError(f"no XCiT with act={card.act}: it is gelu (erf)")
        self.count, self.width = card.depth, card.dim
        self.strides, self.widths = [card.patch] * card.depth, [card.dim] * card.depth
        self.xcit = Xcit(
            img_size=card.patch,
            patch_size=card.patch,
            num_classes=0,
            embed_dim=card.dim,
            depth=card.depth,
            num_heads=card.heads,
            mlp_ratio=card.mlp_ratio,
            qkv_bias=card.qkv_bias,
            norm_layer=partial(nn.LayerNorm, eps=card.norm_eps),
            cls_attn_layers=card.cls_depth,
            tokens_norm=card.tokens_norm,
        )
        self.eval().requires_grad_(False)

    def pos_rule(self, size: tuple[int, int]) -> str:
        """How positions are made for an image of (H, W) pixels."""
        return "computed"

    def outputs(self, images: Tensor, blocks: list[int]) -> dict[int, Tensor]:
        """Raw outputs [B, h*w, D] of the given blocks (0-based)."""
        net = self.xcit
        x, grid = net.patch_embed(images)
        places = net.pos_embed(1, *grid).flatten(2).transpose(1, 2)
        x, out = x + places, {}
        for i, block in enumerate(net.blocks[: max(blocks) + 1]):
            x = block(x, *grid)
            if i in blocks:
                out[i] = x
        return out

    def normed(self, tokens: Tensor, block: int) -> Tensor:
        """Patches [B, h*w, D] through the final norm; those of the last block through class attention before it."""
        return self._final(tokens)[:, 1:] if block == self.count - 1 else self.xcit.norm(tokens)

    def _final(self, tokens: Tensor) -> Tensor:
        """Raw patches of the last block [B, h*w, D] -> normed class token and patches [B, 1 + h*w, D]"""
        x = torch.cat([self.xcit.cls_token.expand(len(tokens), -1, -1), tokens], 1)
        for block in self.xcit.cls_attn_blocks:
            x = block(x)
        return self.xcit.norm(x)

    def patch_map(self, tokens: Tensor, images: Tensor) -> Tensor:
        """Patches [B, h*w, D] of these images -> [B, D, h, w]"""
        grid = tuple(-(-side // self.card.patch) for side in images.shape[-2:])
        return tokens.transpose(1, 2).unflatten(2, grid)

    def image_vector(self, raw: Tensor) -> Tensor:
        """Raw patches of the last block [B, h*w, D] -> [B, D]"""
        return self._final(raw)[:, 0]
