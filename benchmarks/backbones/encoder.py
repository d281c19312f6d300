"""A ViT as an encoder, over timm's network."""

import math

import torch
from torch import Tensor, nn

from ...pretrain.common.card import Card
from ...pretrain.common.errors import UserError
from ...pretrain.common.positions import relative_bias, resize_positions, rule_for
from ...pretrain.model.readout import readout_of
from ...pretrain.model.vit import timm_vit
from .base import FrozenEncoder


def rotary_embedding(periods: Tensor, grid: tuple[int, int]) -> Tensor:
    """periods [d/4] (d: channels of a head), grid (h, w) -> sines and cosines of the patches [h*w, 2*d], for timm.

    Each axis counts -1 to 1 between the image's borders, and a patch lies at its centre (facebookresearch/dinov3,
    layers/rope_position_encoding.py). Float32: the angles of large images need it.
    """
    rows, columns = (2 * (torch.arange(0.5, n, device=periods.device, dtype=torch.float32) / n) - 1 for n in grid)
    places = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), -1).flatten(0, 1)
    angles = (2 * math.pi * places[:, :, None] / periods.float()).flatten(1).tile(2)
    return torch.cat([angles.sin(), angles.cos()], -1)


def stored_rotation(frequencies: Tensor, grid: tuple[int, int], registers: int) -> Tensor:
    """frequencies [2, d] of rows and columns (d: channels of a head), grid (h, w) -> sines and cosines of the registers
    and patches [registers + h*w, 2*d], for timm.

    Patches count 0 to 1 along each axis, from the first to the last one. Registers lie evenly on the border that runs
    around them, from the first patch down, then right (facebookresearch/capi 98b4fa1, model.py).
    """
    rows, columns = (torch.linspace(0, 1, n, device=frequencies.device) for n in grid)
    side = torch.arange(registers // 4, device=frequencies.device) / max(registers // 4, 1)
    zero, one = torch.zeros_like(side), torch.ones_like(side)
    border = ((side, zero), (one, side), (1 - side, one), (zero, 1 - side))
    border = torch.cat([torch.stack(edge, -1) for edge in border]) * torch.stack([rows.max(), columns.max()])
    angles = torch.cat([border, torch.cartesian_prod(rows, columns)]) @ frequencies
    return torch.cat([angles.sin(), angles.cos()], -1)


class Encoder(FrozenEncoder):
    """A ViT. Its image vector: the normed class token, SelfPatch's class attention, the mean of the final patch tokens,
    the norm of the mean of the raw ones, or the mean of the first two final tokens."""

    network = "vit"

    def __init__(self, card: Card):
        super().__init__(card)
        self.count, self.strides = card.depth, [card.patch] * card.depth
        self.stored_grid: tuple[int, int] | None = None  # of the positions, where they are no square
        self.vit = timm_vit(card)
        if card.readout == "class_attention":
            self.readout = readout_of(card)
        if card.readout == "mean_norm":
            self.fc_norm = nn.LayerNorm(card.dim, eps=card.norm_eps)
        if card.pos == "rotary":
            self.register_buffer("rope_periods", torch.ones(card.dim // card.heads // 4))
        self.eval().requires_grad_(False)

    @property
    def prefix(self) -> int:
        """Tokens before the patches: class token and registers."""
        return int(self.card.class_token) + self.card.registers

    def pos_rule(self, size: tuple[int, int]) -> str:
        """How positions are made for an image of (H, W) pixels: the card's rule, or what is assumed in its place."""
        grid = tuple(side // self.card.patch for side in size)
        return rule_for(self.card.pos_resize, self.card.grid, grid)

    def embed(self, images: Tensor) -> Tensor:
        """images [B, 3, H, W] -> tokens with positions [B, prefix + h*w, D]; sets the rotary ones."""
        if min(images.shape[-2:]) < self.card.patch:
            h, w = images.shape[-2:]
            raise UserError(f"a {h}x{w} image is smaller than a patch ({self.card.patch})")
        x = self.vit.patch_embed.proj(images)
        grid = tuple(x.shape[-2:])
        x = x.flatten(2).transpose(1, 2)
        own, token = int(self.card.class_token), self.vit.cls_token
        if self.card.absolute:
            stored = self.vit.pos_embed
            x = x + resize_positions(stored[:, own:], grid, self.card.pos_resize, self.stored_grid)
            token = token + stored[:, :own] if own else None
        else:
            self._place(grid)
        before = []
        if self.card.class_token:
            before.append(token.expand(len(x), -1, -1))
        if self.card.registers:
            before.append(self.vit.reg_token.expand(len(x), -1, -1))
        return torch.cat([*before, x], 1)

    def _place(self, grid: tuple[int, int]) -> None:
        """Tell the attention of each block where the patches lie, where positions are not added to them."""
        if self.card.pos == "rotary":
            rope = rotary_embedding(self.rope_periods, grid)
        shared = getattr(self.vit, "rel_pos_bias", None)
        if shared is not None:
            shared = relative_bias(shared.relative_position_bias_table, grid)
        for block in self.vit.blocks:
            if self.card.pos == "rotary":
                block.attn.rope = rope
            elif self.card.pos == "rotary, stored":
                block.attn.rope = stored_rotation(block.attn.rope_freqs, grid, self.card.registers)
            else:
                block.attn.grid, block.attn.shared = grid, shared

    def tokens(self, images: Tensor, blocks: list[int]) -> dict[int, Tensor]:
        """Raw outputs [B, prefix + h*w, D] of the given blocks (0-based)."""
        x, out = self.embed(images), {}
        for i, block in enumerate(self.vit.blocks[: max(blocks) + 1]):
            x = block(x)
            if i in blocks:
                out[i] = x
        return out

    def patch_map(self, tokens: Tensor, images: Tensor) -> Tensor:
        """Tokens [B, prefix + h*w, D] of these images -> [B, D, h, w]"""
        h, w = (side // self.card.patch for side in images.shape[-2:])
        return tokens[:, self.prefix :].transpose(1, 2).unflatten(2, (h, w))

    outputs = tokens

    def normed(self, tokens: Tensor, block: int) -> Tensor:
        """Tokens through the final norm."""
        return self.vit.norm(tokens)

    def image_vector(self, raw: Tensor) -> Tensor:
        """Raw tokens of the last block [B, prefix + h*w, D] -> [B, D]"""
        if self.card.readout == "class_attention":
            return self.readout(raw[:, self.prefix :])[0]
        if self.card.readout == "mean_norm":
            return self.fc_norm(raw[:, self.prefix :].mean(1))
        final = self.vit.norm(raw)
        if self.card.readout == "token_pair":
            return final[:, :2].mean(1)
        return final[:, 0] if self.card.readout == "token" else final[:, self.prefix :].mean(1)
