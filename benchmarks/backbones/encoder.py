"""What every task sees: images -> an image vector and patch maps, at any size, from any blocks."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ...pretrain.common.card import Card
from ...pretrain.common.errors import UserError
from ...pretrain.common.positions import resize_positions, rule_for
from ...pretrain.model.readout import readout_of
from ...pretrain.model.vit import timm_vit


class Features(NamedTuple):
    """image: [B, D]. patches: one map [B, D, h, w] for each block asked for."""

    image: Tensor
    patches: list[Tensor]


def rotary_embedding(periods: Tensor, grid: tuple[int, int]) -> Tensor:
    """periods [d/4] (d: channels of a head), grid (h, w) -> sines and cosines of the patches [h*w, 2*d], for timm.

    Each axis counts -1 to 1 between the image's borders, and a patch lies at its centre (facebookresearch/dinov3,
    layers/rope_position_encoding.py). Float32: the angles of large images need it.
    """
    rows, columns = (2 * (torch.arange(0.5, n, device=periods.device, dtype=torch.float32) / n) - 1 for n in grid)
    places = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), -1).flatten(0, 1)
    angles = (2 * math.pi * places[:, :, None] / periods.float()).flatten(1).tile(2)
    return torch.cat([angles.sin(), angles.cos()], -1)


class Encoder(nn.Module):
    """A frozen network with its card.

    `encoder(images)`: images float [B, 3, H, W], RGB, normalised by `card.mean` and `card.std` (see `normalise`), any
    size of at least one patch -> Features.
    """

    def __init__(self, card: Card):
        super().__init__()
        self.card = card
        self.fingerprint: str | None = None  # set by checkpoints.open.build, as are the next two
        self.name: str | None = None
        self.accounting: str | None = None
        self.vit = timm_vit(card)
        if card.readout == "class_attention":
            self.readout = readout_of(card)
        if card.readout == "mean_norm":
            self.fc_norm = nn.LayerNorm(card.dim, eps=card.norm_eps)
        if card.pos == "rotary":
            self.register_buffer("rope_periods", torch.ones(card.dim // card.heads // 4))
        self.eval().requires_grad_(False)

    def assign(self, weights: dict[str, Tensor]) -> None:
        """Take over timm-named weights (and `readout.*`) strictly; the caller has checked names and shapes."""
        own = ("readout.", "fc_norm.", "rope_periods")
        named = {key if key.startswith(own) else f"vit.{key}": value for key, value in weights.items()}
        self.load_state_dict(named, strict=True, assign=True)
        self.eval().requires_grad_(False)

    def named_shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the weights that it takes."""
        return {k.removeprefix("vit."): tuple(v.shape) for k, v in self.state_dict().items()}

    def normalise(self, images: Tensor) -> Tensor:
        """RGB images [B, 3, H, W], float in 0..1 or uint8 -> what `forward` takes."""
        if images.dtype == torch.uint8:
            images = images.float() / 255
        mean, std = (images.new_tensor(v).view(3, 1, 1) for v in (self.card.mean, self.card.std))
        return (images - mean) / std

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
        if self.card.pos == "rotary":
            rope = rotary_embedding(self.rope_periods, grid)
            for block in self.vit.blocks:
                block.attn.rope = rope
        else:
            stored = self.vit.pos_embed
            x = x + resize_positions(stored[:, own:], grid, self.card.pos_resize)
            token = token + stored[:, :own] if own else None
        before = []
        if self.card.class_token:
            before.append(token.expand(len(x), -1, -1))
        if self.card.registers:
            before.append(self.vit.reg_token.expand(len(x), -1, -1))
        return torch.cat([*before, x], 1)

    def resolve(self, blocks: list[int]) -> list[int]:
        """Block numbers, negative ones counted from the end -> 0-based. Raises UserError for one beyond the depth."""
        depth = self.card.depth
        for block in blocks:
            if not -depth <= block < depth:
                raise UserError(f"block {block} does not exist: the network has {depth} (0 to {depth - 1})")
        return [block % depth for block in blocks]

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

    def patch_maps(self, images: Tensor, blocks: list[int] | None = None, norm: bool | None = None) -> list[Tensor]:
        """images [B, 3, H, W] -> a map [B, D, h, w] for each block; the cheaper part of `forward`, which see."""
        wanted = self.resolve([-1] if blocks is None else blocks)
        final_norm = self.vit.norm if (blocks is None if norm is None else norm) else nn.Identity()
        raw = self.tokens(images, wanted)
        return [self.patch_map(final_norm(raw[b]), images) for b in wanted]

    def forward(self, images: Tensor, blocks: list[int] | None = None, norm: bool | None = None) -> Features:
        """images [B, 3, H, W] -> Features.

        blocks: whose patch maps to give, in this order; default the last one. norm: pass them through the final norm
        (default: only for the default map, and only if the network has a final norm). The image vector is that of the
        card's readout: the normed class token, SelfPatch's class attention, the mean of the final patch tokens, or the
        norm of the mean of the raw ones.
        """
        wanted = self.resolve([-1] if blocks is None else blocks)
        last = self.card.depth - 1
        raw = self.tokens(images, [*wanted, last])
        if self.card.readout == "class_attention":
            image = self.readout(raw[last][:, self.prefix :])[0]
        elif self.card.readout == "mean_norm":
            image = self.fc_norm(raw[last][:, self.prefix :].mean(1))
        else:
            final = self.vit.norm(raw[last])
            image = final[:, 0] if self.card.readout == "token" else final[:, self.prefix :].mean(1)
        final_norm = self.vit.norm if (blocks is None if norm is None else norm) else nn.Identity()
        return Features(image, [self.patch_map(final_norm(raw[b]), images) for b in wanted])
