"""timm's ViT as a card describes it."""

from functools import partial

import torch
from timm.layers import Attention, AttentionRope, SwiGLUPacked
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ..common.card import Card
from ..common.errors import UserError
from ..common.positions import relative_bias


def timm_vit(card: Card, **kwargs) -> VisionTransformer:
    """timm's module of a ViT's card, without classifier: the converted weights have its names.

    kwargs: passed to timm's class (`drop_path_rate` ...). Its own `forward` is for the stored grid and takes no rotary
    positions: see benchmarks' Encoder. Raises UserError for a card that timm has no network for.
    """
    if card.family != "vit":
        raise UserError(f"no ViT of family {card.family}")
    if card.heads is None or card.dim % card.heads:
        raise UserError(f"{card.heads} attention heads do not divide a width of {card.dim}")
    acts = {"gelu (erf)": nn.GELU, "gelu (tanh)": partial(nn.GELU, approximate="tanh"), "swiglu": nn.SiLU}
    if card.act not in acts:
        raise UserError(f"card act={card.act}: it is one of {', '.join(acts)}")
    rotary, relative = (card.pos.startswith(kind) for kind in ("rotary", "relative"))
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
        proj_bias=card.proj_bias,
        init_values=1.0 if card.layer_scale else None,
        class_token=card.class_token,
        pos_embed="learn" if card.absolute else "none",
        reg_tokens=card.registers,
        global_pool="token" if card.class_token else "avg",
        fc_norm=False,
        final_norm=card.final_norm,
        norm_layer=partial(nn.RMSNorm if card.norm == "rms" else nn.LayerNorm, eps=card.norm_eps),
        attn_layer=RelativeAttention if relative else Attention,
        num_classes=0,
        **(options | kwargs),
    )
    if rotary:
        _rotate(vit, card)
    if relative:
        _relate(vit, card)
    if card.registers and card.absolute:  # registers have no positions of their own
        vit.pos_embed = nn.Parameter(torch.zeros(1, int(card.class_token) + card.grid**2, card.dim))
    return vit


def _rotate(vit: VisionTransformer, card: Card) -> None:
    """Rotary attention in all blocks. With stored frequencies (radians a unit of place, [2, d]) registers have places
    too, so that the rotation is of all tokens."""
    stored = card.pos == "rotary, stored"
    own = 0 if stored else int(card.class_token) + card.registers
    facts = {"qkv_bias": card.qkv_bias, "proj_bias": card.proj_bias, "num_prefix_tokens": own, "rotate_half": True}
    for block in vit.blocks:
        block.attn = RotaryAttention(card.dim, card.heads, **facts)
        if stored:
            block.attn.rope_freqs = nn.Parameter(torch.zeros(2, card.dim // card.heads))


def _relate(vit: VisionTransformer, card: Card) -> None:
    """Tables of relative positions, of each block's or of one that all share."""
    holders, rows = [block.attn for block in vit.blocks], (2 * card.grid - 1) ** 2 + 3
    if card.pos.endswith("shared"):
        vit.rel_pos_bias = nn.Module()
        holders = [vit.rel_pos_bias]
    for holder in holders:
        holder.relative_position_bias_table = nn.Parameter(torch.zeros(rows, card.heads))


class RelativeAttention(Attention):
    """timm's attention, to whose logits a bias of its table is added; `grid` is set before each pass, and `shared`
    where the bias is that of all blocks."""

    grid: tuple[int, int] | None = None
    shared: Tensor | None = None

    def bias(self) -> Tensor:
        """What is added to the logits, [1, heads, 1 + h*w, 1 + h*w]"""
        return relative_bias(self.relative_position_bias_table, self.grid) if self.shared is None else self.shared

    def forward(self, x: Tensor, attn_mask=None, is_causal: bool = False) -> Tensor:
        """x [B, 1 + h*w, D] -> the same shape"""
        return super().forward(x, attn_mask=self.bias().to(x.dtype), is_causal=is_causal)


class RotaryAttention(AttentionRope):
    """timm's rotary attention with the signature of its plain one; `rope` is set before each pass."""

    rope: Tensor | None = None

    def forward(self, x: Tensor, attn_mask=None, is_causal: bool = False) -> Tensor:
        """x [B, prefix + h*w, D] -> the same shape"""
        return super().forward(x, rope=self.rope, attn_mask=attn_mask, is_causal=is_causal)
