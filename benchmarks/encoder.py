"""What every task sees: images -> an image vector and patch maps, at any size, from any blocks."""

import math
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ..pretrain.readout import ClassAttentionReadout
from .card import Card
from .errors import UserError


class Features(NamedTuple):
    """image: [B, D]. patches: one map [B, D, h, w] for each block asked for."""

    image: Tensor
    patches: list[Tensor]


def resize_positions(patches: Tensor, grid: tuple[int, int], rule: str) -> Tensor:
    """Stored positions [1, G*G, D] at another grid (h, w) -> [1, h*w, D].

    rule: a key of card.POSITION_RULES. "dino" hands bicubic interpolation a scale factor with 0.1 added to each side
    (facebookresearch/dino 7c446df, vision_transformer.py), which samples other points than an output size does.
    """
    side = math.isqrt(patches.shape[1])
    h, w = grid
    if (h, w) == (side, side):
        return patches
    stored = patches.reshape(1, side, side, -1).permute(0, 3, 1, 2)
    if rule == "dino":
        scale = ((h + 0.1) / side, (w + 0.1) / side)
        out = F.interpolate(stored, scale_factor=scale, mode="bicubic", recompute_scale_factor=False)
    else:
        out = F.interpolate(stored, size=(h, w), mode="bicubic", antialias=rule == "timm")
    if out.shape[-2:] != (h, w):
        raise UserError(f"positions {side}x{side} resized to {tuple(out.shape[-2:])} instead of {h}x{w}")
    return out.permute(0, 2, 3, 1).flatten(1, 2)


class Encoder(nn.Module):
    """A frozen network with its card.

    `encoder(images)`: images float [B, 3, H, W], RGB, normalised by `card.mean` and `card.std` (see `normalise`), any
    size of at least one patch -> Features.
    """

    def __init__(self, card: Card):
        super().__init__()
        if card.family != "vit":
            raise UserError(f"encoders of family {card.family} are not there yet; vit is")
        if card.heads is None or card.dim % card.heads:
            raise UserError(f"{card.heads} attention heads do not divide a width of {card.dim}")
        if card.act != "gelu (erf)":
            raise UserError(f"card act={card.act}: `gelu (erf)` is the one there is")
        self.card = card
        self.fingerprint: str | None = None  # set by loading.load, as are the next two
        self.name: str | None = None
        self.accounting: str | None = None
        self.vit = VisionTransformer(
            img_size=card.grid * card.patch,
            patch_size=card.patch,
            embed_dim=card.dim,
            depth=card.depth,
            num_heads=card.heads,
            mlp_ratio=card.mlp_ratio,
            qkv_bias=card.qkv_bias,
            init_values=1.0 if card.layer_scale else None,
            class_token=card.class_token,
            reg_tokens=card.registers,
            global_pool="token" if card.class_token else "avg",
            fc_norm=False,
            final_norm=card.final_norm,
            norm_layer=partial(nn.LayerNorm, eps=card.norm_eps),
            num_classes=0,
        )
        if card.readout == "class_attention":
            self.readout = ClassAttentionReadout(card.dim, card.heads, 2, card.mlp_ratio, card.norm_eps)
        self.eval().requires_grad_(False)

    def assign(self, weights: dict[str, Tensor]) -> None:
        """Take over timm-named weights (and `readout.*`) strictly; the caller has checked names and shapes."""
        split = {"readout": {}, "vit": {}}
        for key, value in weights.items():
            part, _, rest = key.partition(".")
            if part == "readout":
                split["readout"][rest] = value
            else:
                split["vit"][key] = value
        self.vit.load_state_dict(split["vit"], strict=True, assign=True)
        if split["readout"]:
            self.readout.load_state_dict(split["readout"], strict=True, assign=True)
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

    def embed(self, images: Tensor) -> Tensor:
        """images [B, 3, H, W] -> tokens with positions [B, prefix + h*w, D]"""
        if min(images.shape[-2:]) < self.card.patch:
            h, w = images.shape[-2:]
            raise UserError(f"a {h}x{w} image is smaller than a patch ({self.card.patch})")
        x = self.vit.patch_embed.proj(images)
        grid = tuple(x.shape[-2:])
        x = x.flatten(2).transpose(1, 2)
        stored = self.vit.pos_embed
        own = stored.shape[1] - self.card.grid**2  # 1: the class token has a position of its own
        x = x + resize_positions(stored[:, own:], grid, self.card.pos_resize)
        before = []
        if self.card.class_token:
            token = self.vit.cls_token
            before.append((token + stored[:, :own] if own else token).expand(len(x), -1, -1))
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
        card's readout: the normed class token, SelfPatch's class attention, or the mean of the final patch tokens.
        """
        wanted = self.resolve([-1] if blocks is None else blocks)
        last = self.card.depth - 1
        raw = self.tokens(images, [*wanted, last])
        if self.card.readout == "class_attention":
            image = self.readout(raw[last][:, self.prefix :])[0]
        else:
            final = self.vit.norm(raw[last])
            image = final[:, 0] if self.card.readout == "token" else final[:, self.prefix :].mean(1)
        final_norm = self.vit.norm if (blocks is None if norm is None else norm) else nn.Identity()
        return Features(image, [self.patch_map(final_norm(raw[b]), images) for b in wanted])
