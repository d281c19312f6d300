"""What every task sees: images -> an image vector and patch maps, at any size, from any blocks."""

import math
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from timm.layers import AttentionRope, SwiGLUPacked
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ...pretrain.common.card import Card
from ...pretrain.common.errors import UserError
from ...pretrain.model.readout import ClassAttentionReadout


class Features(NamedTuple):
    """image: [B, D]. patches: one map [B, D, h, w] for each block asked for."""

    image: Tensor
    patches: list[Tensor]


ASSUMED = "dino (assumed)"


def rule_for(rule: str, side: int, grid: tuple[int, int]) -> str:
    """The rule that makes the positions of `grid` from a stored side x side: `rule`, or DINO's where it has no answer.

    The official code of some formats takes the stored grid only, or square ones: for others DINO's rule is assumed.
    """
    answers = grid == (side, side) or rule not in ("stored", "square") or (rule == "square" and grid[0] == grid[1])
    return rule if answers else ASSUMED


def resize_positions(patches: Tensor, grid: tuple[int, int], rule: str) -> Tensor:
    """Stored positions [1, G*G, D] at another grid (h, w) -> [1, h*w, D].

    rule: a key of card.POSITION_RULES. "dino" hands bicubic interpolation a scale factor with 0.1 added to each side
    (facebookresearch/dino 7c446df, vision_transformer.py), which samples other points than an output size does.
    """
    side = math.isqrt(patches.shape[1])
    h, w = grid
    if (h, w) == (side, side):
        return patches
    rule = rule_for(rule, side, grid)
    stored = patches.reshape(1, side, side, -1).permute(0, 3, 1, 2)
    if rule in ("dino", ASSUMED):
        scale = ((h + 0.1) / side, (w + 0.1) / side)
        out = F.interpolate(stored, scale_factor=scale, mode="bicubic", recompute_scale_factor=False)
    else:
        out = F.interpolate(stored, size=(h, w), mode="bicubic", antialias=rule == "timm")
    if out.shape[-2:] != (h, w):
        raise UserError(f"positions {side}x{side} resized to {tuple(out.shape[-2:])} instead of {h}x{w}")
    return out.permute(0, 2, 3, 1).flatten(1, 2)


def rotary_embedding(periods: Tensor, grid: tuple[int, int]) -> Tensor:
    """periods [d/4] (d: channels of a head), grid (h, w) -> sines and cosines of the patches [h*w, 2*d], for timm.

    Each axis counts -1 to 1 between the image's borders, and a patch lies at its centre (facebookresearch/dinov3,
    layers/rope_position_encoding.py). Float32: the angles of large images need it.
    """
    rows, columns = (2 * (torch.arange(0.5, n, device=periods.device, dtype=torch.float32) / n) - 1 for n in grid)
    places = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), -1).flatten(0, 1)
    angles = (2 * math.pi * places[:, :, None] / periods.float()).flatten(1).tile(2)
    return torch.cat([angles.sin(), angles.cos()], -1)


def timm_vit(card: Card, **kwargs) -> VisionTransformer:
    """timm's module of a ViT's card, without classifier: the converted weights have its names.

    kwargs: passed to timm's class (`drop_path_rate` ...). Its own `forward` is for the stored grid and takes no rotary
    positions: use `Encoder`. Raises UserError for a card that timm has no network for.
    """
    if card.family != "vit":
        raise UserError(f"no ViT of family {card.family}")
    if card.heads is None or card.dim % card.heads:
        raise UserError(f"{card.heads} attention heads do not divide a width of {card.dim}")
    acts = {"gelu (erf)": nn.GELU, "gelu (tanh)": partial(nn.GELU, approximate="tanh"), "swiglu": nn.SiLU}
    if card.act not in acts:
        raise UserError(f"card act={card.act}: it is one of {', '.join(acts)}")
    rotary = card.pos == "rotary"
    options = {"act_layer": acts[card.act]}
    if card.act == "swiglu":
        options["mlp_layer"] = SwiGLUPacked
    vit = VisionTransformer(
        img_size=max(card.grid, 1) * card.patch,
        patch_size=card.patch,
        embed_dim=card.dim,
        depth=card.depth,
        num_heads=card.heads,
        mlp_ratio=card.mlp_ratio,
        qkv_bias=card.qkv_bias,
        init_values=1.0 if card.layer_scale else None,
        class_token=card.class_token,
        pos_embed="none" if rotary else "learn",
        reg_tokens=card.registers,
        global_pool="token" if card.class_token else "avg",
        fc_norm=False,
        final_norm=card.final_norm,
        norm_layer=partial(nn.LayerNorm, eps=card.norm_eps),
        num_classes=0,
        **(options | kwargs),
    )
    for block in vit.blocks if rotary else ():
        block.attn = RotaryAttention(
            card.dim,
            card.heads,
            qkv_bias=card.qkv_bias,
            num_prefix_tokens=int(card.class_token) + card.registers,
            rotate_half=True,
        )
    if card.registers and not rotary:  # registers have no positions of their own
        vit.pos_embed = nn.Parameter(torch.zeros(1, int(card.class_token) + card.grid**2, card.dim))
    return vit


class RotaryAttention(AttentionRope):
    """timm's rotary attention with the signature of its plain one; `rope` is set before each pass."""

    rope: Tensor | None = None

    def forward(self, x: Tensor, attn_mask=None, is_causal: bool = False) -> Tensor:
        """x [B, prefix + h*w, D] -> the same shape"""
        return super().forward(x, rope=self.rope, attn_mask=attn_mask, is_causal=is_causal)


def encoder_for(card: Card) -> nn.Module:
    """The empty network of a card: `Encoder` for a ViT, `conv.ConvEncoder` for a ResNet or Swin.

    Both have `card`, `fingerprint`, `name`, `accounting`, `assign(weights)`, `named_shapes()`, `normalise(images)` and
    `forward(images, blocks, norm) -> Features`.
    """
    if card.family == "vit":
        return Encoder(card)
    from .conv import ConvEncoder

    return ConvEncoder(card)


class Encoder(nn.Module):
    """A frozen network with its card.

    `encoder(images)`: images float [B, 3, H, W], RGB, normalised by `card.mean` and `card.std` (see `normalise`), any
    size of at least one patch -> Features.
    """

    def __init__(self, card: Card):
        super().__init__()
        self.card = card
        self.fingerprint: str | None = None  # set by loading.load, as are the next two
        self.name: str | None = None
        self.accounting: str | None = None
        self.vit = timm_vit(card)
        if card.readout == "class_attention":
            self.readout = ClassAttentionReadout(card.dim, card.heads, 2, card.mlp_ratio, card.norm_eps)
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
