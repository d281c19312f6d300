"""timm's ViT as a card describes it."""

from functools import partial

import torch
from timm.layers import AttentionRope, SwiGLUPacked
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ..common.card import Card
from ..common.errors import UserError


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
